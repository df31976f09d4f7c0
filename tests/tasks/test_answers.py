"""Answers and their scores against torchmetrics' SQuAD and slow loops."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.text import SQuAD

from lightning_compress.data.answer_labels import AnswerLabel
from lightning_compress.tasks import task_named
from lightning_compress.tasks.answers import LONGEST, best_spans, exact_match, word_f1

WORDS = ["The", "cat", "a", "dog's", "(2010)", "an", "U.S.", "cat", "mat.", "dog"]


def test_scores_are_those_of_torchmetrics() -> None:
    draw = random.Random(0)
    for _ in range(200):
        answer, *right = (" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(4))
        reference = SQuAD()
        reference.update(
            [{"prediction_text": answer, "id": "0"}],
            [{"answers": {"answer_start": [0] * 3, "text": right}, "id": "0"}],
        )
        expected = {name: float(value) / 100 for name, value in reference.compute().items()}
        assert exact_match(answer, right) == pytest.approx(expected["exact_match"])
        assert word_f1(answer, right) == pytest.approx(expected["f1"])


def test_no_answer_is_right_where_there_is_none() -> None:
    assert (exact_match("", ()), word_f1("", ())) == (1, 1)
    assert (exact_match("cat", ()), word_f1("cat", ())) == (0, 0)
    assert (exact_match("", ["cat"]), word_f1("", ["cat"])) == (0, 0)


def spans_by_loops(starts: Sequence[float], ends: Sequence[float]) -> list[tuple[float, int, int]]:
    found = [
        (starts[i] + ends[j], i, j)
        for i in range(len(starts))
        for j in range(i, min(i + LONGEST, len(ends)))
    ]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length", [1, 2, 50])
def test_the_best_spans_are_those_of_all(length: int) -> None:
    starts, ends = np.random.default_rng(0).normal(size=(2, length)).astype(np.float32)
    found = best_spans(starts, ends, 5)
    expected = spans_by_loops(starts.tolist(), ends.tolist())[:5]
    assert [(one.start, one.end) for one in found] == [(i, j) for _, i, j in expected]
    assert [one.score for one in found] == pytest.approx([score for score, *_ in expected])


def windows(unanswerable: bool) -> tuple[Tensor, Tensor, list[tuple[str, list[str]]]]:
    """Logits and labels of 12 windows of 5 questions, and by loops the answer of each question."""
    generator = torch.Generator().manual_seed(1)
    text = "one two three four five six"
    offsets, place = [], 0
    for word in text.split():
        offsets.append((place, place + len(word)))
        place += len(word) + 1
    logits = torch.randn(12, 9, 2, generator=generator)
    labels, candidates = [], dict[int, list[tuple[float, str]]]()
    nothing = dict[int, float]()
    gold = [["two three"], ["six", "five"], [], ["one"], ["four five six"]]
    if not unanswerable:
        gold[2] = ["two"]
    for number in range(12):
        question = number % 5
        label = AnswerLabel(
            start=0, end=0, question=question, unanswerable=unanswerable, first=2,
            offsets=np.array(offsets, dtype=np.int32), text=text, answers=gold[question],
        )  # fmt: skip
        labels.append(label.encoded(150))
        starts, ends = logits[number, 2:8, 0].tolist(), logits[number, 2:8, 1].tolist()
        score, i, j = spans_by_loops(starts, ends)[0]
        answer = " ".join(text.split()[i : j + 1])
        candidates.setdefault(question, []).append((score, answer))
        empty = float(logits[number, 0].sum())
        nothing[question] = min(empty, nothing.get(question, empty))
    answers = []
    for question in range(5):
        score, answer = max(candidates[question])
        if unanswerable and nothing[question] > score:
            answer = ""
        answers.append((answer, gold[question]))
    return logits, torch.from_numpy(np.stack(labels)).unsqueeze(1), answers


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_best_of_all_windows_is_judged(unanswerable: bool) -> None:
    logits, labels, answers = windows(unanswerable)
    if unanswerable:
        logits[2::5, 0] += 20  # nothing is the answer to one question
        answers[2] = ("", [])
    task = task_named("question-answering")
    metrics = task.metrics(None)
    for part in (slice(0, 5), slice(5, 12), slice(0, 3)):  # examples that come twice count once
        metrics.update(*task.predictions_and_targets(logits[part], labels[part]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["exact_match"] == pytest.approx(np.mean([exact_match(*one) for one in answers]))
    assert found["f1"] == pytest.approx(np.mean([word_f1(*one) for one in answers]))


def test_loss_and_choices_are_over_the_positions() -> None:
    task = task_named("question-answering")
    logits, labels = torch.randn(3, 7, 2), torch.zeros(3, 1, 40, dtype=torch.int32)
    labels[:, 0, 0], labels[:, 0, 1] = torch.tensor([0, 3, 2]), torch.tensor([0, 5, 2])
    losses = [
        -logits[row, :, side].log_softmax(0)[labels[row, 0, side]]
        for row in range(3)
        for side in (0, 1)
    ]
    assert float(task.loss(logits, labels)) == pytest.approx(float(sum(losses)) / 6)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7])
    found = task.choices(logits, mask)
    assert found.shape == (6, 7)
    assert torch.equal(found[0], logits[0, :, 0])
    assert torch.equal(found[4, :5], logits[1, :5, 1])
    assert float(found.softmax(-1)[4, 5:].sum()) == 0
    assert task.label_counts(labels, 2).tolist() == [1, 2]
