"""Answers that are parts of a text: found among the positions, and judged as SQuAD does.

Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
2016, arXiv:1606.05250, section 6.1: exact match and the F1 of words, of the best of the right
answers, without case, punctuation and articles. Rajpurkar, Jia, Liang, "Know What You Don't Know:
Unanswerable Questions for SQuAD", 2018, arXiv:1806.03822: a question may have no answer.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_compress.data.answer_labels import decoded

LONGEST = 30
"""Tokens of the longest answer that is looked for."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Span:
    """A candidate for an answer.

    Args:
        start, end: first and last token, counted from the first token of the context.
        score: sum of the two logits.
    """

    start: int
    end: int
    score: float


def best_spans(starts: NDArray[np.float32], ends: NDArray[np.float32], count: int) -> list[Span]:
    """The spans with the largest scores of a window, the best first.

    Args:
        starts, ends: [N] logits of the tokens of the context.
        count: how many.
    """
    behind = np.full(LONGEST - 1, -np.inf, dtype=ends.dtype)
    # [N, LONGEST]: for each start, the ends from there on.
    following = np.lib.stride_tricks.sliding_window_view(np.append(ends, behind), LONGEST)
    scores = (starts[:, None] + following).ravel()
    count = min(count, int(np.isfinite(scores).sum()))
    best = np.argpartition(-scores, count - 1)[:count]
    best = best[np.argsort(-scores[best], kind="stable")]
    return [
        Span(int(at // LONGEST), int(at // LONGEST + at % LONGEST), float(scores[at]))
        for at in best
    ]


def normalized(text: str) -> list[str]:
    """The words of an answer, without case, punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Whether an answer has the words of a right one, 0 or 1; without any, whether it is empty."""
    return float(any(normalized(answer) == normalized(one) for one in right or [""]))


def word_f1(answer: str, right: Sequence[str]) -> float:
    """The F1 of the words of an answer, of the best of the right ones."""
    return max(_f1(normalized(answer), normalized(one)) for one in right or [""])


def _f1(found: list[str], expected: list[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    common = sum((Counter(found) & Counter(expected)).values())
    return 2 * common / (len(found) + len(expected))


class AnswerMetric(Metric):
    """Judges the best answer of every question, over all windows of its context.

    Where a question may have no answer, none is given if the first token scores more than any span,
    in the window where it scores least.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    windows: list[Tensor]  # each [n, 7], one row a window, see `_judged`

    def __init__(self) -> None:
        super().__init__()
        self.add_state("windows", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add windows: logits [B, S, 2] of starts and ends, and their labels [B, 1, L]."""
        scores, rows = logits.float().cpu().numpy(), labels[:, 0].cpu().numpy()
        judged = [_judged(score, row) for score, row in zip(scores, rows, strict=True)]
        self.windows.append(torch.tensor(judged, device=self.device))

    def _judgements(self) -> Tensor:
        """Exact match and F1 of the answer of each question, [Q, 2]."""
        rows = dim_zero_cat(self.windows).cpu()
        rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
        rows = rows[rows[:, 0].argsort(stable=True)]
        questions, counts = torch.unique(rows[:, 0], return_counts=True)
        best = rows[counts.cumsum(0) - counts]
        least = torch.stack([rows[rows[:, 0] == one, 4].min() for one in questions])
        none = least > best[:, 1]
        return torch.where(none[:, None], best[:, 5:7], best[:, 2:4])


def _judged(scores: NDArray[np.float32], row: NDArray[np.int32]) -> list[float]:
    """The question, then score, exact match and F1 of the best span, then the same of no answer."""
    label = decoded(row)
    context = scores[label.first : label.first + len(label.offsets)]
    (best,) = best_spans(context[:, 0], context[:, 1], 1)
    answer = label.text[label.offsets[best.start, 0] : label.offsets[best.end, 1]]
    none = float(scores[0].sum()) if label.unanswerable else -np.inf
    return [
        label.question,
        best.score, exact_match(answer, label.answers), word_f1(answer, label.answers),
        none, exact_match("", label.answers), word_f1("", label.answers),
    ]  # fmt: skip


class AnswerExactMatch(AnswerMetric):
    """Fraction of the questions whose answer is one of the right ones."""

    def compute(self) -> Tensor:
        """Return the fraction over all questions."""
        return self._judgements()[:, 0].mean()


class AnswerF1(AnswerMetric):
    """Mean F1 of the words of the answers."""

    def compute(self) -> Tensor:
        """Return the mean over all questions."""
        return self._judgements()[:, 1].mean()
