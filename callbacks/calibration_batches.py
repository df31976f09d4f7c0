"""Calibration sets from the training data of a run."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_compress.data.dataloader import ResumableLoader
from lightning_compress.errors import InputError
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import device_of, model_inputs
from lightning_compress.tasks import Task, task_of
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def calibration_for(trainer: L.Trainer, model: "PreTrainedModel", examples: int) -> Calibration:
    """Take a calibration set from the training data: the same examples at every call and rank.

    The position of the training in its data does not change.

    Args:
        trainer: of the run, during ``fit``.
        model: gives the loss and the logits of the calibration set, and its device.
        examples: number of examples, rounded up to whole batches; all if there are fewer. A
            classifier's examples without a label do not count.

    Raises:
        InputError: no example has a label, or the batches are not the dictionaries that Hugging
            Face models take.
    """
    task = task_of(model)
    batches: list[Batch] = []
    for batch in _batches(trainer.train_dataloader):
        if not isinstance(batch, dict) or "input_ids" not in batch or "labels" not in batch:
            raise InputError(
                "calibration needs training batches that are dictionaries with input_ids and "
                f"labels, as Hugging Face models take them, not {type(batch).__name__}"
            )
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        if not task.per_token:
            tensors = _labelled(tensors, task)
        if len(tensors["input_ids"]):
            batches.append({name: value.to(device_of(model)) for name, value in tensors.items()})
        if sum(len(one["input_ids"]) for one in batches) >= examples:
            break
    if not batches:
        raise InputError(
            "calibration_examples: no training example has a label; with unlabelled texts set "
            "data.train_on to both"
        )

    return as_calibration(model, batches)


def as_calibration(model: "PreTrainedModel", batches: Sequence[Batch]) -> Calibration:
    """A calibration set of batches that are on the model's device."""
    task = task_of(model)

    def logits(batch: Batch) -> Tensor:
        found: Tensor = model(**model_inputs(model, batch)).logits
        return found

    def loss(batch: Batch) -> Tensor:
        return task.loss(logits(batch), batch["labels"])

    return Calibration(batches, loss, logits)


def _labelled(batch: Batch, task: Task) -> Batch:
    """The examples of a batch that have a label."""
    kept = task.target_mask(batch["labels"])
    return batch if kept.all() else {name: value[kept] for name, value in batch.items()}


def _batches(loader: Any) -> Iterator[Any]:
    """Batches in an order that does not depend on the position of the training."""
    if isinstance(loader, ResumableLoader):
        yield from loader.sample()
        return
    if not isinstance(loader, DataLoader) or isinstance(
        loader.dataset, torch.utils.data.IterableDataset
    ):
        raise InputError(
            "calibration takes training examples by index: use one DataLoader over a "
            f"map-style dataset, not {type(loader).__name__}"
        )
    size = loader.batch_size or 1
    rows = range(len(loader.dataset))  # type: ignore[arg-type]  # map-style: it has a length
    # Rows as far apart as there are batches, because neighbours may be alike.
    for first in range(-(-len(rows) // size)):
        chosen = list(islice(rows, first, None, -(-len(rows) // size)))
        yield loader.collate_fn([loader.dataset[row] for row in chosen])
