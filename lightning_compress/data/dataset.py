"""Examples to batches: gather the ids, pad them together, add the targets."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.errors import InputError
from lightning_compress.types import Batch, padded_length


class Targets(ABC):
    """Adds ``labels`` to a batch.

    Attributes:
        changes_input: the input of an example changes, too, and in every epoch anew.
    """

    changes_input: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        """Add the labels of the requested examples to their batch, in place."""


class Sequences(Protocol):
    """Token ids of examples."""

    ids: NDArray[np.int64]  # [N] stable ids of the examples
    lengths: NDArray[np.int64]  # [N] tokens of each
    together: int  # so many neighbours are always in one batch, and count as one for its size

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one example."""

    def segments(self, index: int) -> NDArray[Any] | None:
        """Which text of a pair each token belongs to; None for single texts."""


class TokenBatches(Dataset[Batch]):
    """Batches padded to their longest example, rounded up to a multiple of 8; made on request.

    A batch holds ``input_ids``, ``attention_mask``, ``example_id``, for pairs of texts also
    ``token_type_ids``, and what the targets add. Padding has the padding token, mask 0.

    Args:
        sequences: the examples.
        pad_token_id: fills up.
        max_length: no batch is longer.
        add_targets: None for a batch without labels.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        pad_token_id: int,
        max_length: int,
        add_targets: Targets | None,
    ) -> None:
        self.sequences = sequences
        self.pad_token_id = pad_token_id
        self.add_targets = add_targets
        longest = sequences.lengths.reshape(-1, sequences.together).max(1)
        self.padded = padded_length(longest, max_length)

    def __len__(self) -> int:
        """Examples, not batches; those that stay together count as one."""
        return len(self.padded)

    def __getitem__(self, request: BatchRequest) -> Batch:
        inside = np.arange(self.sequences.together)
        indices = (request.indices[:, None] * len(inside) + inside).ravel()
        return self._batch(BatchRequest(indices, request.epoch))

    def _batch(self, request: BatchRequest) -> Batch:
        """The batch of some examples, whether those that stay together are all there or not."""
        indices = request.indices
        shape = (len(indices), int(self.padded[indices // self.sequences.together].max()))
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        paired = False
        for row, index in enumerate(indices):
            tokens = self.sequences.tokens(index)
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            if (segments := self.sequences.segments(index)) is not None:
                types[row, : len(tokens)] = segments
                paired = True
        batch = {"input_ids": input_ids, "attention_mask": mask, "example_id": self._ids(indices)}
        if paired:
            batch["token_type_ids"] = types
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.add_targets is not None:
            self.add_targets(tensors, request)
        return tensors

    @property
    def fixed_inputs(self) -> bool:
        """Whether an example's input is the same in every epoch; masked tokens are not."""
        return self.add_targets is None or not self.add_targets.changes_input

    def by_ids(self, ids: NDArray[np.int64]) -> Batch:
        """Make the batch of the examples with these ids [B], in this order, as in evaluation.

        Raises:
            InputError: there is no example with one of the ids.
        """
        order, ascending = self._by_id
        places = np.searchsorted(ascending, ids).clip(max=len(ascending) - 1)
        unknown = ids[ascending[places] != ids]
        if len(unknown):
            raise InputError(
                f"there is no example {unknown[0]} ({len(unknown)} of {len(ids)} are not there): "
                "the same rows need the same data.path, data.splits, data.limits and data.seed"
            )
        return self._batch(BatchRequest(order[places], None))

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the examples by ascending id, and these ids."""
        order = np.argsort(self.sequences.ids)
        return order, self._ids(order)

    def _ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(self.sequences.ids[indices], dtype=np.int64)


def fingerprint_of(parts: Sequence[TokenBatches]) -> str:
    """Hash of the ids, tokens and segments of all examples, however they are split in parts."""
    examples = sorted(
        (int(id_), part, index)
        for part, batches in enumerate(parts)
        for index, id_ in enumerate(batches.sequences.ids)
    )
    digest = hashlib.sha256()
    for id_, part, index in examples:
        sequences = parts[part].sequences
        tokens, segments = sequences.tokens(index), sequences.segments(index)
        digest.update(f"{id_} {len(tokens)} {segments is not None} ".encode())
        for numbers in (tokens, segments):
            if numbers is not None:
                digest.update(np.asarray(numbers, dtype=np.int64).tobytes())
    return digest.hexdigest()
