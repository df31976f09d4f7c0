"""Calibration sets from the training data of a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_compress.data.dataloader import ResumableLoader
from lightning_compress.errors import InputError, first_line
from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.models.forward import device_of, logits_in, model_inputs
from lightning_compress.tasks import Task, task_of
from lightning_compress.types import MAIN_INPUTS, Batch, main_input

from .own_training_step import require_callable_step, step_inputs, step_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def calibration_for(trainer: L.Trainer, model: "PreTrainedModel", examples: int) -> Calibration:
    """Take a calibration set from the training data: the same examples at every call and rank.

    The position of the training in its data does not change. Where the model has a head of a known
    task and the batches are dictionaries with ``input_ids`` or ``pixel_values``, and ``labels``,
    the loss is the task's; else inputs and loss are those of the module's ``training_step``.

    Args:
        trainer: of the run, during ``fit``.
        model: gives the loss and the logits of the calibration set, and its device.
        examples: number of examples, rounded up to whole batches; all if there are fewer. A
            classifier's examples without a label do not count.

    Raises:
        InputError: no example has a label, or the batches or the module cannot be used.
    """
    task = _task(model)
    batches: list[Batch] = []
    raw: dict[int, Any] = {}
    for given in _batches(trainer.train_dataloader):
        if task is not None and _is_standard(given):
            batch = _on_device(given, model, task)
        else:
            batch = _of_own_step(trainer, model, given)
            raw[id(batch)] = given
        if len(main_input(batch)):
            batches.append(batch)
        if sum(len(main_input(one)) for one in batches) >= examples:
            break
    if not batches:
        raise InputError(
            "calibration_examples: no training example has a label; with unlabelled texts set "
            "data.train_on to both"
        )
    calibration = as_calibration(model, batches)
    if not raw:
        return calibration
    module = trainer.lightning_module
    return replace(calibration, loss=lambda batch: step_loss(module, raw[id(batch)]))


def check_calibration(trainer: L.Trainer, model: "PreTrainedModel") -> None:
    """Check that the run can be calibrated, before its first step.

    Args:
        trainer: of the run, in ``on_train_start`` or later.
        model: the one that is compressed.

    Raises:
        InputError: see :func:`calibration_for`.
    """
    with isolate_rng(), torch.no_grad():
        calibration = calibration_for(trainer, model, 1)
        calibration.loss(calibration.batches[0])


def require_predictions(model: "PreTrainedModel", option: str, remedy: str) -> None:
    """Refuse an option that compares predictions if the model has no head.

    Raises:
        InputError: it has none of a known task.
    """
    try:
        task_of(model)
    except InputError as error:
        raise InputError(f"{option} compares predictions: {error}; or {remedy}") from error


def as_calibration(model: "PreTrainedModel", batches: Sequence[Batch]) -> Calibration:
    """A calibration set of batches that are on the model's device.

    A model without a head has no logits and no loss: its first output takes the logits' place.
    """
    task = _task(model)

    def logits(batch: Batch) -> Tensor:
        inputs = model_inputs(model, batch)
        output = model(**inputs)
        found: Tensor = output[0] if task is None else logits_in(output, model, inputs)
        return found

    def loss(batch: Batch) -> Tensor:
        found = logits(batch)
        if task is not None and task.distribution == "embedding":
            return _projected(found)
        return task_of(model).loss(found, batch["labels"])

    def choices(batch: Batch) -> Tensor:
        found = logits(batch)
        return found if task is None else task.choices(found, token_mask(batch))

    numbers = task is None or task.distribution in ("continuous", "embedding")
    return Calibration(batches, loss, choices, numbers=numbers)


def _projected(embeddings: Tensor) -> Tensor:
    """The mean product of embeddings [B, H] with random vectors, always the same, a scalar.

    The expected square of its gradient by a gate is how far the gate moves the embedding: the
    Fisher information, were embeddings the means of normal distributions. The loss of a trained
    model is flat along many of the directions in which embeddings fall together.
    """
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(embeddings.shape, generator=random).to(embeddings)
    return (embeddings * vectors).sum(-1).mean()


def _task(model: "PreTrainedModel") -> Task | None:
    try:
        return task_of(model)
    except InputError:
        return None


def _is_standard(batch: object) -> bool:
    if not isinstance(batch, Mapping):
        return False
    return "labels" in batch and any(name in batch for name in MAIN_INPUTS)


def _on_device(batch: Mapping[str, Any], model: "PreTrainedModel", task: Task) -> Batch:
    """The tensors of a batch on the model's device, without examples that have no label."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if not task.per_token:
        tensors = _labelled(tensors, task)
    return {name: value.to(device_of(model)) for name, value in tensors.items()}


def _of_own_step(trainer: L.Trainer, model: "PreTrainedModel", batch: Any) -> Batch:
    """What the module's training step makes of a batch."""
    module = trainer.lightning_module
    require_callable_step(module)
    try:
        with torch.no_grad():
            return step_inputs(module, model, trainer.strategy.batch_to_device(batch))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"calibration: {type(module).__name__}.training_step fails on a batch of the training "
            f"dataloader: {type(error).__name__}: {first_line(error)}"
        ) from error


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
