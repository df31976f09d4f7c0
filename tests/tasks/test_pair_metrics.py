"""Metrics of pairs against scipy and slow loops; they do not depend on order and batches."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from lightning_compress.errors import InputError
from lightning_compress.tasks.pair_metrics import (
    FirstPlace,
    PairPearson,
    PairSpearman,
    ReciprocalRank,
)
from lightning_compress.tasks.sentence_similarity import SentenceRetrieval, SentenceSimilarity

PAIRS = 40


@pytest.fixture
def texts() -> tuple[Tensor, Tensor]:
    """Embeddings and labels of pairs whose texts are alike, in random order."""
    torch.manual_seed(0)
    first = torch.randn(PAIRS, 5)
    second = first + 0.8 * torch.randn(PAIRS, 5)
    embeddings = torch.stack([first, second], 1).reshape(-1, 5)
    scores = torch.rand(PAIRS).repeat_interleave(2)
    return embeddings, torch.stack([torch.arange(2.0 * PAIRS), scores], 1)


def in_batches(metric, embeddings, labels, size=7):
    order = torch.randperm(len(labels))
    for start in range(0, len(order), size):
        some = order[start : start + size]
        metric.update(embeddings[some], labels[some])
    metric.update(embeddings[:6], labels[:6])  # repeated, as by a distributed sampler
    return float(metric.compute())


def test_correlations_are_those_of_scipy(texts):
    embeddings, labels = texts
    cosines = functional.cosine_similarity(embeddings[0::2], embeddings[1::2])
    scores = labels[0::2, 1]
    spearman = stats.spearmanr(cosines, scores).statistic
    pearson = stats.pearsonr(cosines, scores).statistic
    assert in_batches(PairSpearman(), *texts) == pytest.approx(spearman, abs=1e-5)
    assert in_batches(PairPearson(), *texts) == pytest.approx(pearson, abs=1e-5)


def test_ranks_are_those_of_a_slow_loop(texts):
    embeddings, _ = texts
    first, second = embeddings[0::2], embeddings[1::2]
    ranks = []
    for place, one in enumerate(first):
        cosines = [float(functional.cosine_similarity(one, other, dim=0)) for other in second]
        ranks.append(1 + sum(cosine > cosines[place] for cosine in cosines))
    expected = sum(1 / rank for rank in ranks) / PAIRS
    assert 0.1 < expected < 0.9
    assert in_batches(ReciprocalRank(), *texts) == pytest.approx(expected, abs=1e-5)
    share = sum(rank == 1 for rank in ranks) / PAIRS
    assert in_batches(FirstPlace(), *texts) == pytest.approx(share)


def test_equal_embeddings_are_no_better_than_a_random_order():
    labels = torch.stack([torch.arange(20.0), torch.full((20,), torch.nan)], 1)
    assert in_batches(ReciprocalRank(), torch.ones(20, 3), labels) == pytest.approx(1 / 5.5)
    assert in_batches(FirstPlace(), torch.ones(20, 3), labels) == 0


def test_losses_are_those_written_out(texts):
    embeddings, labels = texts
    order = torch.randperm(len(labels))
    first, second = embeddings[0::2], embeddings[1::2]
    squares = [
        (float(functional.cosine_similarity(a, b, dim=0)) - float(score)) ** 2
        for a, b, score in zip(first, second, labels[0::2, 1], strict=True)
    ]
    found = SentenceSimilarity().loss(embeddings[order], labels[order])
    assert float(found) == pytest.approx(sum(squares) / PAIRS, abs=1e-5)
    units = [functional.normalize(one, dim=-1) for one in (first, second)]
    logits = 20 * units[0] @ units[1].T
    expected = -logits.log_softmax(-1).diagonal().mean()
    found = SentenceRetrieval().loss(embeddings[order], labels[order])
    assert float(found) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("task", [SentenceSimilarity(), SentenceRetrieval()])
def test_texts_without_a_pair_do_not_count(task, texts):
    embeddings, labels = texts
    more = torch.cat([labels, torch.full((3, 2), torch.nan)])
    both = torch.cat([embeddings, torch.randn(3, 5)])
    assert task.loss(both, more) == task.loss(embeddings, labels)
    none = task.loss(embeddings.requires_grad_(), torch.full_like(labels, torch.nan))
    none.backward()
    assert none == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
    with pytest.raises(InputError, match="one text of a pair and not the other"):
        task.loss(embeddings[1:], labels[1:])


def test_the_trivial_baseline_bounds_luck():
    """Of 200 random orders at most some percent are better, and the mean is much below it."""
    torch.manual_seed(0)
    task = SentenceRetrieval()
    chance = task.trivial_baseline(examples=100, label_counts=(), vocabulary=0)
    labels = torch.stack([torch.arange(100.0), torch.full((100,), torch.nan)], 1)
    found = []
    for _ in range(200):
        metric = ReciprocalRank()
        metric.update(torch.randn(100, 8), labels)
        found.append(float(metric.compute()))
    assert sum(one > chance for one in found) <= 16
    assert chance < 0.2
