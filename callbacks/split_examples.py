"""The examples of a split of a run, of all processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch

from lightning_compress.evaluation.examples import Example, distinct, examples_of


def split_batches(loaders: Any, limits: Sequence[float]) -> Iterator[Any]:
    """The batches of a split once more.

    Args:
        loaders: as the Trainer holds them: one, or several in a list or a dictionary.
        limits: number of batches of each, infinite for all.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    for loader, limit in zip(
        loaders if isinstance(loaders, list) else [loaders], limits, strict=True
    ):
        yield from islice(loader, None if limit == float("inf") else int(limit))


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
