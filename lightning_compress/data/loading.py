"""A ``DataLoader`` that goes on in the middle of an epoch where a checkpoint left it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from lightning_compress.data.batching import LengthBucketedBatches
from lightning_compress.errors import InputError


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """Loads whole batches, and knows how many of the epoch are done.

    Lightning keeps ``state_dict`` in its checkpoints. What counts there is batches that were
    trained on, not those that workers fetched ahead nor one that an interrupt found in flight.

    The loader's random numbers are its own, so that a resumed run finds torch's global generator
    as it would be without the resume.

    Args:
        dataset: answers a ``BatchRequest`` with a batch.
        order: makes the requests.
        trained: how many batches of the epoch have been trained on; None: as many as were asked
            for.
        options: as of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Tensor]],
        *,
        order: LengthBucketedBatches,
        trained: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        # Lightning makes the loader anew with a sequential sampler for `overfit_batches`, and with
        # the loader's own for prediction.
        if isinstance(options.pop("sampler", None), SequentialSampler):
            order = order.fixed()
        options |= {"batch_size": None, "generator": torch.Generator().manual_seed(order.seed)}
        super().__init__(dataset, sampler=order, **options)
        self.order = order
        self.trained = trained
        self._given = (order.epoch, 0)  # epoch, batches of it given out
        self._resume_at: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Batches of the sampler's epoch; a generator, for Lightning sets the epoch afterwards."""
        epoch, start = self._resume_at or (self.order.epoch, 0)
        self._resume_at = None
        self.order.start = start if epoch == self.order.epoch else 0
        self._given = (self.order.epoch, self.order.start)
        for batch in super().__iter__():
            epoch, given = self._given
            self._given = (epoch, given + 1)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain data: epoch, batches of it that are done, and a fingerprint of the order."""
        epoch, done = self._given
        if self.trained is not None:
            done = min(done, self.trained())
        return {"epoch": epoch, "batches": done, "order": self.order.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration of that epoch go on behind the batches that are done.

        Raises:
            InputError: the checkpoint stands in the middle of an epoch whose batches were others.
        """
        midway = 0 < state["batches"] < len(self.order)
        if midway and state["order"] != self.order.fingerprint:
            raise InputError(
                "the checkpoint was written in the middle of an epoch with other data, "
                "data.batch_size, data.seed, data.max_length, data.padding or number of processes: "
                "resume with the same, or from a checkpoint of an epoch's end"
            )
        self._given = self._resume_at = (state["epoch"], state["batches"])
