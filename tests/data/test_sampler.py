"""Which examples meet: exact partitions, for every number of processes."""

from itertools import chain

import numpy as np
import pytest

from lightning_compress.data.dataloader import LengthBucketedBatches
from lightning_compress.types import padded_length

RANDOM = np.random.default_rng(0)


def batches(count: int, **options: int | bool) -> list[list[list[int]]]:
    """Batches of each rank."""
    ranks = int(options.pop("ranks", 1))
    epoch = int(options.pop("epoch", 0))
    lengths = padded_length(np.random.default_rng(count).integers(1, 100, count), 96)
    found = []
    for rank in range(ranks):
        sampler = LengthBucketedBatches(lengths, num_replicas=ranks, rank=rank, **options)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        found.append([request.indices.tolist() for request in sampler])
        assert len(found[-1]) == len(sampler)
    return found


def test_padding_to_eights_never_beyond_the_limit() -> None:
    lengths = np.array([1, 8, 9, 95, 97, 99])
    assert padded_length(lengths, 99).tolist() == [8, 8, 16, 96, 99, 99]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 401])
def test_every_example_once(count: int, training: bool, bucketed: bool) -> None:
    (one,) = batches(count, batch_size=8, training=training, bucketed=bucketed)
    assert sorted(chain(*one)) == list(range(count))
    sizes = sorted(map(len, one), reverse=True)
    assert sizes[:-1] == [8] * (len(sizes) - 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("count", [*range(4, 34), 400, 401, 402, 403])
def test_ranks_share_the_examples_evenly(count: int, ranks: int, training: bool) -> None:
    shares = batches(count, batch_size=4, ranks=ranks, training=training)
    assert sorted(chain(*chain(*shares))) == list(range(count)), "disjoint and complete"
    assert len({len(share) for share in shares}) == 1
    for step in zip(*shares, strict=True):
        sizes = [len(batch) for batch in step]
        assert min(sizes) >= 1
        assert max(sizes) <= 4
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "batch_size"), [(2, 4), (1, 1), (7, 1)])
def test_duplicates_only_where_nothing_else_is_left(count: int, batch_size: int) -> None:
    shares = batches(count, batch_size=batch_size, ranks=3)
    assert set(chain(*chain(*shares))) == set(range(count))
    assert all(batch for batch in chain(*shares))
    assert sum(map(len, chain(*shares))) == -(-count // 3) * 3


def test_order_follows_seed_and_epoch() -> None:
    first = batches(200, batch_size=8, training=True)
    assert batches(200, batch_size=8, training=True) == first
    assert batches(200, batch_size=8, training=True, epoch=1) != first
    assert batches(200, batch_size=8, training=True, seed=1) != first
    fixed = batches(200, batch_size=8)
    assert batches(200, batch_size=8, epoch=1) == fixed


def test_buckets_hold_like_lengths_and_stay_random() -> None:
    lengths = padded_length(RANDOM.integers(1, 128, 5000), 128)
    sampler = LengthBucketedBatches(lengths, batch_size=16, training=True)
    computed = sum(16 * lengths[request.indices].max() for request in sampler)
    assert computed < 1.05 * lengths.sum()
    firsts = [int(lengths[request.indices].max()) for request in sampler]
    assert np.abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.2, "batches are shuffled"
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append({tuple(sorted(request.indices.tolist())) for request in sampler})
    assert len(epochs[0] & epochs[1]) < 3, "examples of a bucket meet others in each epoch"


def test_evaluation_prefix_stands_for_the_whole() -> None:
    lengths = padded_length(RANDOM.integers(1, 128, 4000), 128)
    sampler = LengthBucketedBatches(lengths, batch_size=16)
    means = [lengths[request.indices].mean() for request in sampler]
    assert abs(np.mean(means[:50]) - lengths.mean()) < 15


def test_unbucketed_evaluation_keeps_the_given_order() -> None:
    assert batches(10, batch_size=4, bucketed=False) == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]


def test_fixed_and_fingerprint() -> None:
    lengths = padded_length(RANDOM.integers(1, 128, 50), 128)
    sampler = LengthBucketedBatches(lengths, batch_size=4, training=True)
    fixed = sampler.fixed()
    assert [r.indices.tolist() for r in fixed] == [
        r.indices.tolist() for r in LengthBucketedBatches(lengths, batch_size=4)
    ]
    prints = {
        LengthBucketedBatches(lengths, batch_size=4, training=True).fingerprint,
        sampler.fingerprint,
    }
    assert len(prints) == 1
    others = [
        fixed,
        LengthBucketedBatches(lengths, batch_size=5, training=True),
        LengthBucketedBatches(lengths, batch_size=4, training=True, seed=1),
        LengthBucketedBatches(lengths[:-1], batch_size=4, training=True),
        LengthBucketedBatches(lengths, batch_size=4, training=True, num_replicas=2),
    ]
    assert len({other.fingerprint for other in others} - prints) == len(others)
