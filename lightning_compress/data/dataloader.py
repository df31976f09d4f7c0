"""Batches of like length, and a ``DataLoader`` of them that resumes in the middle of an epoch."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from lightning_compress.errors import InputError

if TYPE_CHECKING:
    from lightning import Trainer

_POOL = 50  # batches whose examples are sorted together


class BatchRequest(NamedTuple):
    """One batch to make.

    Args:
        indices: positions of its examples.
        epoch: of the training; None in evaluation.
    """

    indices: NDArray[np.int64]
    epoch: int | None


class LengthBucketedBatches(DistributedSampler[BatchRequest]):
    """Batches of examples of like padded length; every example exactly once an epoch.

    In training, the examples are shuffled by (seed, epoch), sorted by padded length within pools
    of 50 batches (so they stay shuffled within one padded length), cut into batches, and the
    batches are shuffled. In evaluation, all examples are sorted together, and the order of the
    batches is shuffled once and for all, so that the first batches stand for the whole.

    Every process has the same number of batches. They share out the examples of one step, which
    are thus of like length. In the last step the batches may be one example smaller on some of
    them; an example comes twice only where there is no other way: with fewer examples than
    processes, or with batches of one.

    It is a ``DistributedSampler`` for Lightning to leave it in its place and to set its epoch.

    Args:
        lengths: [N] tokens of each example, as padded.
        batch_size: examples of a batch on one process.
        seed: of the order.
        training: shuffle anew each epoch.
        bucketed: without, examples come in random (training) or given (evaluation) order.
        num_replicas: processes that share the examples.
        rank: which of them this is.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int = 0,
        training: bool = False,
        bucketed: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        dataset: Dataset[BatchRequest] = _Sized(len(lengths))
        super().__init__(dataset, num_replicas, rank, shuffle=training, seed=seed)
        self.lengths = lengths
        self.batch_size = batch_size
        self.bucketed = bucketed
        self.start = 0  # how many batches of the epoch to pass over

    def __len__(self) -> int:
        """Batches of an epoch on each process."""
        return -(-len(self.lengths) // (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch = self.epoch if self.shuffle else None
        for examples in self._steps(epoch)[self.start :]:
            mine = np.array_split(examples, self.num_replicas)[self.rank]
            yield BatchRequest(mine, epoch)

    def fixed(self) -> "LengthBucketedBatches":
        """The same examples in the order of evaluation."""
        return LengthBucketedBatches(
            self.lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            bucketed=self.bucketed,
            num_replicas=self.num_replicas,
            rank=self.rank,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Equal for samplers that make the same batches in every epoch."""
        options = (self.batch_size, self.seed, self.shuffle, self.bucketed, self.num_replicas)
        lengths = np.ascontiguousarray(self.lengths, dtype=np.int64)
        return hashlib.sha256(repr(options).encode() + lengths.tobytes()).hexdigest()[:16]

    def _steps(self, epoch: int | None) -> list[NDArray[np.int64]]:
        """The examples of every step, of all processes together."""
        random = np.random.default_rng([self.seed, 0 if epoch is None else epoch + 1])
        order = np.arange(len(self.lengths))
        if self.shuffle:
            order = random.permutation(order)
        if self.bucketed:
            order = self._sorted_by_length(order)
        steps = np.split(order, self._cuts())
        if len(steps[-1]) < self.num_replicas:
            steps[-1] = np.resize(np.concatenate([steps[-1], order]), self.num_replicas)
        if self.bucketed:
            return [steps[i] for i in random.permutation(len(steps))]
        return steps

    def _sorted_by_length(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        pool = _POOL * self.batch_size * self.num_replicas if self.shuffle else len(order)
        pools = np.split(order, range(pool, len(order), pool))
        return np.concatenate(
            [examples[np.argsort(self.lengths[examples], kind="stable")] for examples in pools]
        )

    def _cuts(self) -> NDArray[np.int64]:
        together = self.batch_size * self.num_replicas
        cuts = np.arange(together, len(self.lengths), together)
        if len(cuts) and self.batch_size > 1:
            # The last step takes from the one before what it lacks for every process to have one.
            cuts[-1] = min(cuts[-1], len(self.lengths) - self.num_replicas)
        return cuts


def require_same_order(checkpoint: str | None, order: LengthBucketedBatches) -> None:
    """Refuse to resume in the middle of an epoch of other batches.

    Args:
        checkpoint: fingerprint of the order in the checkpoint; None: unknown.
        order: of the run.

    Raises:
        InputError: they differ.
    """
    if checkpoint not in (None, order.fingerprint):
        raise InputError(
            "the checkpoint was written in the middle of an epoch with other data, "
            "data.batch_size, data.seed, data.max_length or number of processes: "
            "resume with the same, or from a checkpoint of an epoch's end"
        )


def batches_done(
    trainer: "Trainer | None", order: LengthBucketedBatches, checkpoint: str | None
) -> int:
    """How many batches of its epoch a Trainer has trained on; more than 0 only after a resume.

    Args:
        trainer: that runs, if any.
        order: of the run.
        checkpoint: fingerprint of the order in the checkpoint; None: unknown.

    Raises:
        InputError: the checkpoint is in the middle of an epoch of other batches.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done = int(progress.processed)
    if done:
        require_same_order(checkpoint, order)
    return done


class _Sized(Dataset[BatchRequest]):
    """Stands for so many examples; ``DistributedSampler`` wants a dataset to know its length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


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
        """Empty: marks the loader as resumable for Lightning; ``done`` holds the position.

        Lightning's own way to give a loader its state back is not taken, since it forgets to when
        the steps were counted beforehand (``estimated_stepping_batches``), and since it counts a
        batch that an interrupt found in flight.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see ``state_dict``."""
