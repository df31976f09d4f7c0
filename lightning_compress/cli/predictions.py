"""The lines of ``predictions.jsonl``: numbers of a prediction under the names of the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.data import TokenClassificationDataModule
from lightning_compress.data.splits import row_of


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
