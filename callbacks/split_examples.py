"""The examples of a split of a run, of all processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DistributedSampler

from lightning_compress.evaluation.examples import Example, distinct, examples_of


def split_batches(loaders: Any, limits: Sequence[float]) -> Iterator[Any]:
    """The batches of a split once more.

    Examples that have no ``example_id`` get their row where a distributed sampler, which repeats
    some of them, shares them out.

    Args:
        loaders: as the Trainer holds them: one, or several in a list or a dictionary.
        limits: number of batches of each, infinite for all.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    listed = loaders if isinstance(loaders, list) else [loaders]
    for number, (loader, limit) in enumerate(zip(listed, limits, strict=True)):
        batches: Iterator[Any] = islice(loader, None if limit == float("inf") else int(limit))
        sampler = getattr(loader, "sampler", None)
        if type(sampler) is DistributedSampler:
            batches = _numbered(batches, iter(sampler), number << 40)
        yield from batches


def _numbered(batches: Iterable[Any], rows: Iterator[int], first: int) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Mapping) and "input_ids" in batch and "example_id" not in batch:
            taken = islice(rows, len(batch["input_ids"]))
            yield {**batch, "example_id": torch.tensor([first + row for row in taken])}
        else:
            yield batch


def examples_of_all(trainer: L.Trainer, batches: Iterable[object], split: str) -> list[Example]:
    """The examples of the batches of all processes, equal in each.

    Raises:
        InputError: see :func:`~lightning_compress.evaluation.examples.examples_of`.
    """
    mine = examples_of(batches, split=split)
    if trainer.world_size == 1:
        return mine
    shares: list[list[Example]] = [[]] * trainer.world_size
    torch.distributed.all_gather_object(shares, mine)
    return distinct(example for share in shares for example in share)
