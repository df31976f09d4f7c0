"""How well scores order the documents of each query, averaged over the queries.

Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002,
https://doi.org/10.1145/582415.582418: nDCG, here with the relevance itself as the gain, as in
scikit-learn. Voorhees, "The TREC-8 Question Answering Track Report", 1999,
https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf: the reciprocal rank.

Documents with equal scores count as in a random order, of which the mean is taken: McSherry,
Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores", 2008, https://doi.org/10.1007/978-3-540-78646-7_38. Otherwise a model that gives one score
to all documents would be as good as the order of the file. ``RetrievalMRR`` of torchmetrics takes
that order, and no document with a score of zero or below.
"""

from abc import abstractmethod
from collections.abc import Iterator
from math import comb, sqrt

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.retrieval import retrieval_normalized_dcg
from torchmetrics.utilities import dim_zero_cat

TOP = 10
"""Documents of a query that count, those with the largest scores."""

RELEVANT = 0.5
"""Least relevance of a document that is relevant, where only two kinds are told apart."""


class RankingMetric(Metric):
    """The mean over all queries of a value between 0 and 1.

    Rows of a query may come in any batch and on any process. Rows without a relevance are left out,
    and so are queries without a relevant document, for which no order is better than another.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]  # each [n]
    labels: list[Tensor]  # each [n, 2]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add rows: scores [B] and labels [B, 2], the number of the query and the relevance."""
        labelled = ~labels[:, 1].isnan()
        self.scores.append(scores[labelled].float())
        self.labels.append(labels[labelled])

    def values(self) -> Tensor:
        """Return the value of each query that counts, [Q]; none if no query does."""
        return torch.tensor([float(one) for one in self._of_queries()])

    def compute(self) -> Tensor:
        """Return the mean over the queries; NaN if there is none."""
        return self.values().mean().to(self.device)

    def _of_queries(self) -> Iterator[Tensor | float]:
        scores, labels = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.labels).cpu()
        order = labels[:, 0].argsort()
        counts = torch.unique(labels[:, 0], return_counts=True)[1].tolist()
        parts = (torch.split(rows, counts) for rows in (scores[order], labels[order, 1]))
        for mine, relevance in zip(*parts, strict=True):
            if self._counts(relevance):
                yield self._of_query(mine, relevance)

    def _counts(self, relevance: Tensor) -> bool:
        return bool(relevance.any())

    @abstractmethod
    def _of_query(self, scores: Tensor, relevance: Tensor) -> Tensor | float:
        """Return the value of one query, of whose documents these are [n] scores and relevances."""


class NormalizedDCG(RankingMetric):
    """nDCG of the 10 documents with the largest scores of each query."""

    def _of_query(self, scores: Tensor, relevance: Tensor) -> Tensor:
        return retrieval_normalized_dcg(scores, relevance, top_k=TOP)


class ReciprocalRank(RankingMetric):
    """1 / rank of the first relevant document, 0 if it is not among the first 10.

    A relevance of at least 0.5 is relevant.
    """

    def _counts(self, relevance: Tensor) -> bool:
        return bool((relevance >= RELEVANT).any())

    def _of_query(self, scores: Tensor, relevance: Tensor) -> float:
        relevant = relevance >= RELEVANT
        best = scores[relevant].max()
        before, tied = int((scores > best).sum()), int((scores == best).sum())
        good = int((scores[relevant] == best).sum())
        # Of the tied documents in random order, the first relevant one is the j-th in
        # comb(tied - j, good - 1) of comb(tied, good) cases.
        last = min(tied - good + 1, TOP - before)
        cases = comb(tied, good)
        return sum(comb(tied - j, good - 1) / ((before + j) * cases) for j in range(1, last + 1))


class LuckyDCG(NormalizedDCG):
    """nDCG that a random order may reach by luck, to be updated with labels alone.

    That is its mean plus two standard errors; a value in [0, 1] with the mean m has a standard
    deviation of at most sqrt(m (1 - m)).
    """

    def update(self, labels: Tensor) -> None:  # type: ignore[override]  # there are no scores
        """Add rows with labels [B, 2]."""
        super().update(labels.new_zeros(len(labels)), labels)

    def compute(self) -> Tensor:
        """Return the bound; NaN if no query counts."""
        values = self.values()
        mean = float(values.mean())
        return torch.tensor(mean + 2 * sqrt(max(0.0, mean * (1 - mean)) / max(1, len(values))))
