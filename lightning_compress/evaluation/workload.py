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

    ``whole`` is the whole split; ``single`` are examples alone and without padding; ``full`` are
    batches of exactly the wanted size. ``single`` and ``full`` stand evenly for all lengths.
    """

    whole: list[Batch]
    single: list[Batch]
    full: list[Batch]
    longest: Batch

    @property
    def typical(self) -> Batch:
        """The example of median length."""
        return self.single[len(self.single) // 2]

    @property
    def trials(self) -> list[Batch]:
        """Batches of the shapes that there will be, the most demanding one first."""
        return [self.longest, self.full[0], self.typical]


def workload_of(
    examples: Sequence[Example], *, batch_size: int, singles: int, pad_token_id: int
) -> Workload:
    """Choose the batches.

    Args:
        examples: all examples of the split.
        batch_size: of the batches for quality and throughput.
        singles: how many examples at most are run alone.
        pad_token_id: what batches are filled up with.
    """
    ordered = sorted(examples, key=len)
    whole = length_bucketed(ordered, batch_size, pad_token_id=pad_token_id)
    full = [batch for batch in whole if len(batch["input_ids"]) == batch_size]
    if not full:  # too few examples: some come again
        filled = sorted(islice(cycle(ordered), batch_size), key=len)
        full = length_bucketed(filled, batch_size, pad_token_id=pad_token_id)
    return Workload(
        whole=whole,
        single=[
            collated([example], pad_token_id=pad_token_id, longest=len(example))
            for example in spread_evenly(ordered, singles)
        ],
        full=spread_evenly(full, _THROUGHPUT_BATCHES),
        longest=full[-1],
    )
