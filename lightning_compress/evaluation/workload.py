"""Which of the examples are run for which figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from lightning_compress.evaluation.examples import (
    Batch,
    Example,
    collated,
    length_bucketed,
    spread_evenly,
)

_THROUGHPUT_BATCHES = 8


@dataclass(frozen=True)
class Workload:
    """Batches of real examples, each list shortest first.

    ``whole`` is the whole split. ``timed``, by size, are batches of exactly that size which stand
    evenly for all lengths; those of one example have no padding.
    """

    whole: list[Batch]
    timed: dict[int, list[Batch]]
    longest: Batch

    @property
    def typical(self) -> Batch:
        """The example of median length."""
        return self.timed[1][len(self.timed[1]) // 2]

    @property
    def trials(self) -> list[Batch]:
        """Batches of the shapes that there will be, the most demanding one first."""
        shortest = [batches[0] for size, batches in sorted(self.timed.items()) if size > 1]
        return [self.longest, *reversed(shortest), self.typical]


def workload_of(
    examples: Sequence[Example], *, batch_sizes: Sequence[int], singles: int, pad_token_id: int
) -> Workload:
    """Choose the batches.

    Args:
        examples: all examples of the split.
        batch_sizes: of the batches to be timed, beside single examples; the largest is that of
            the whole split's.
        singles: how many examples at most are run alone.
        pad_token_id: what batches are filled up with.
    """
    ordered = sorted(examples, key=len)
    full = {size: _full_batches(ordered, size, pad_token_id) for size in batch_sizes}
    alone = [
        collated([example], pad_token_id=pad_token_id, longest=len(example))
        for example in spread_evenly(ordered, singles)
    ]
    return Workload(
        whole=length_bucketed(ordered, max(batch_sizes), pad_token_id=pad_token_id),
        timed={size: spread_evenly(b, _THROUGHPUT_BATCHES) for size, b in full.items()}
        | {1: alone},
        longest=full[max(batch_sizes)][-1],
    )


def _full_batches(ordered: Sequence[Example], size: int, pad_token_id: int) -> list[Batch]:
    """All batches of exactly that size; where there are too few examples some come again."""
    if len(ordered) < size:
        ordered = sorted(islice(cycle(ordered), size), key=len)
    batches = length_bucketed(ordered, size, pad_token_id=pad_token_id)
    return [batch for batch in batches if len(batch["input_ids"]) == size]
