"""A ``DataLoader`` that goes on in the middle of an epoch where a checkpoint left it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from lightning_compress.data.sampler import LengthBucketedBatches


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """Loads whole batches, and can pass over those of the epoch that are done.

    The loader's random numbers are its own, so that a resumed run finds torch's global generator
    as it would be without the resume.

    Args:
        dataset: answers a ``BatchRequest`` with a batch.
        order: makes the requests.
        done: how many batches of the epoch to pass over; asked when the first one is taken;
            None: start at the beginning.
        options: as of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Tensor]],
        *,
        order: LengthBucketedBatches,
        done: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        # Lightning makes the loader anew with a sequential sampler for `overfit_batches`, and with
        # the loader's own for prediction.
        if isinstance(options.pop("sampler", None), SequentialSampler):
            order = order.fixed()
        options |= {"batch_size": None, "generator": torch.Generator().manual_seed(order.seed)}
        super().__init__(dataset, sampler=order, **options)
        self.order = order
        self.done = done

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Batches of the sampler's epoch.

        A generator, for Lightning asks for the iterator before it sets the epoch.
        """
        self.order.start = 0 if self.done is None else self.done()
        yield from super().__iter__()

    def sample(self) -> Iterator[dict[str, Tensor]]:
        """The batches in the order of evaluation: any number of the first stands for the whole.

        The same for all processes and at all times, and made here, whatever the workers do.
        """
        order = LengthBucketedBatches(
            self.order.lengths,
            batch_size=self.order.batch_size,
            seed=self.order.seed,
            bucketed=self.order.bucketed,
        )
        return (self.dataset[request] for request in order)

    def state_dict(self) -> dict[str, Any]:
        """Empty: tells Lightning that the loader can resume, which ``done`` then says where.

        Lightning's own way to give a loader its state back is not taken, since it forgets to when
        the steps were counted beforehand (``estimated_stepping_batches``), and since it counts a
        batch that an interrupt found in flight.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see ``state_dict``."""
