"""The lines of ``predictions.jsonl``: numbers of a prediction under the names of the labels."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_compress.data import (
    QuestionAnsweringDataModule,
    RerankingDataModule,
    SentencePairDataModule,
    TokenClassificationDataModule,
)
from lightning_compress.data.sentence_pairs import pair_of
from lightning_compress.data.splits import row_of
from lightning_compress.tasks.answers import best_spans

_N_BEST = 5  # answers that are written for a question


def lines_of(
    batches: Iterable[Mapping[str, Any]], names: Sequence[str], data: object
) -> Iterator[dict[str, Any]]:
    """The predictions of all batches for a reader: one for each example, or for each question.

    Examples are in the order of their file.

    Args:
        batches: tensors by the names of ``predict_step``.
        names: of the labels in the order of the model's outputs.
        data: the data module that the examples are of.
    """
    columns = ({name: values.tolist() for name, values in batch.items()} for batch in batches)
    rows: Iterator[dict[str, Any]] = (
        dict(zip(batch, row, strict=True))
        for batch in columns
        for row in zip(*batch.values(), strict=True)
    )
    if isinstance(data, QuestionAnsweringDataModule):
        return _answers(rows, data)
    if isinstance(data, SentencePairDataModule):
        return _similarities(rows) if len(data.columns) > 1 else _embeddings(rows)
    if isinstance(data, RerankingDataModule):
        rows = _ranked(rows, data)
    lines = [described(row, names, data) for row in rows]
    # Batches are of texts of one length; people look for the order of their file.
    return iter(sorted(lines, key=lambda line: line.get("row", 0)))


def described(
    prediction: Mapping[str, Any], names: Sequence[str], data: object = None
) -> dict[str, Any]:
    """One prediction for a reader, as plain data.

    Args:
        prediction: of one example, by the names of ``predict_step``.
        names: of the labels in the order of the model's outputs.
        data: the data module that the example is of.

    Returns:
        The prediction with ``row``, the row of its file counted from 0; the name ``label`` of a
        class or the names ``labels`` of several; and probabilities by name. Of words: the
        ``words`` with their ``tags`` and probabilities, null for words beyond ``data.max_length``.
    """
    line = dict(prediction)
    if "example_id" in line:
        line = {"row": row_of(line["example_id"]), **line}
    if "tag" in line and isinstance(data, TokenClassificationDataModule):
        return _words(line, names, data)
    if "class" in line:
        line["label"] = names[line["class"]]
    if "probabilities" in line:
        by_name = dict(zip(names, line["probabilities"], strict=True))
        if "class" not in line:
            line["labels"] = [name for name, value in by_name.items() if value > 0.5]
        line["probabilities"] = by_name
    return line


def _words(
    line: Mapping[str, Any], names: Sequence[str], data: TokenClassificationDataModule
) -> dict[str, Any]:
    words, starts = data.words_of(line["example_id"])
    cut = [None] * (len(words) - len(starts))
    return {
        "row": line["row"],
        "words": words,
        "tags": [names[line["tag"][start]] for start in starts] + cut,
        "probabilities": [line["probability"][start] for start in starts] + cut,
    }


def _embeddings(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The embedding of each text."""
    for row in sorted(rows, key=lambda one: one["example_id"]):
        yield {"row": pair_of(row["example_id"])[0], "embedding": row["embedding"]}


def _similarities(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cosine of the embeddings of each pair."""
    ordered = iter(sorted(rows, key=lambda one: one["example_id"]))
    for first, second in zip(ordered, ordered, strict=True):
        one, other = (np.array(row["embedding"]) for row in (first, second))
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        row = pair_of(first["example_id"])[0]
        yield {"row": row, "similarity": float(one @ other / lengths)}


def _ranked(
    rows: Iterable[Mapping[str, Any]], data: RerankingDataModule
) -> Iterator[dict[str, Any]]:
    """Each prediction with its query and its rank in it; those with equal scores share a rank."""
    found = [(data.query_of(row["example_id"]), row) for row in rows]
    logits: dict[Any, list[float]] = defaultdict(list)
    for query, row in found:
        logits[query].append(row["logit"])
    ordered = {query: np.sort(-np.array(mine)) for query, mine in logits.items()}
    for query, row in found:
        rank = 1 + int(np.searchsorted(ordered[query], -row["logit"]))
        yield {**row, "query": query, "rank": rank}


def _answers(
    rows: Iterable[Mapping[str, Any]], data: QuestionAnsweringDataModule
) -> Iterator[dict[str, Any]]:
    """The answers to each question, the best first, out of all windows of its context."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    none: dict[int, float] = {}
    questions: dict[int, str] = {}
    for row in rows:
        question, window = data.window_of(row["example_id"])
        inside = slice(window.first, window.first + len(window.offsets))
        starts, ends = (np.array(row[name]) for name in ("start_logits", "end_logits"))
        scores = found[window.row]
        for span in best_spans(starts[inside], ends[inside], _N_BEST):
            text = question.context[window.offsets[span.start, 0] : window.offsets[span.end, 1]]
            scores[text] = max(span.score, scores.get(text, span.score))
        empty = float(starts[0] + ends[0])
        none[window.row] = min(empty, none.get(window.row, empty))
        questions[window.row] = question.text
    for number in sorted(found):
        scores = found[number] | ({"": none[number]} if data.unanswerable else {})
        best = sorted(scores, key=lambda text: -scores[text])[:_N_BEST]
        weights = np.exp(np.array([scores[text] for text in best]) - scores[best[0]])
        probabilities = (weights / weights.sum()).tolist()
        candidates = [
            {"answer": text, "probability": probability}
            for text, probability in zip(best, probabilities, strict=True)
        ]
        yield {
            "row": number,
            "question": questions[number],
            "answer": best[0],
            "candidates": candidates,
        }
