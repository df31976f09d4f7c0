"""Calibration by the training step of a LightningModule that is not one of this package.

Such a module may hold a bare encoder under a head of its own, and its batches may have any form.
What the Hugging Face model gets, and the loss, are those of its ``training_step``.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_compress.errors import InputError
from lightning_compress.models.forward import evaluating
from lightning_compress.types import MAIN_INPUTS, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_callable_step(pl_module: L.LightningModule) -> None:
    """Refuse a training step that cannot be called for its loss alone.

    Raises:
        InputError: it steps the optimizers itself, or reads batches by itself.
    """
    parameters = inspect.signature(pl_module.training_step).parameters
    if not pl_module.automatic_optimization or "dataloader_iter" in parameters:
        raise InputError(
            f"calibration: {type(pl_module).__name__} optimizes manually or reads its batches by "
            "itself, so its training_step does not tell the loss of a batch. Give batches that "
            "are dictionaries with input_ids and labels to a Hugging Face model with a head"
        )


def step_loss(pl_module: L.LightningModule, batch: Any) -> Tensor:
    """The loss of ``training_step`` for a batch, a scalar; the module in eval mode.

    The step runs on a copy of the module that shares its submodules: it logs nothing, and lists
    and metrics of the module are as before.

    Raises:
        InputError: the step fails, or returns no loss.
    """
    count = len(inspect.signature(pl_module.training_step).parameters)
    step = _without_traces(pl_module).training_step
    with evaluating(pl_module):
        output = step(*(copy.copy(batch), 0, 0)[:count])
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(
            f"calibration: {type(pl_module).__name__}.training_step returned no loss, but "
            f"{type(loss).__name__}"
        )
    return loss


def step_inputs(pl_module: L.LightningModule, model: "PreTrainedModel", batch: Any) -> Batch:
    """What ``training_step`` gives the Hugging Face model for a batch.

    Raises:
        InputError: it calls the model not exactly once, or with neither ``input_ids`` nor
            ``pixel_values``.
    """
    calls: list[Batch] = []
    names = list(inspect.signature(model.forward).parameters)

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        calls.append({name: one for name, one in given.items() if isinstance(one, Tensor)})

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        step_loss(pl_module, batch)
    finally:
        handle.remove()
    if len(calls) != 1 or not any(name in calls[0] for name in MAIN_INPUTS):
        raise InputError(
            f"calibration: {type(pl_module).__name__}.training_step calls "
            f"{type(model).__name__} {len(calls)} times for a batch, and not once with "
            f"{' or '.join(MAIN_INPUTS)}"
        )
    return calls[0]


def _without_traces(pl_module: L.LightningModule) -> L.LightningModule:
    """A copy for a call: the same parameters, but lists and metrics of its own, and no log."""
    probe = type(pl_module).__new__(type(pl_module))
    for name, value in vars(pl_module).items():
        shared = not isinstance(value, list | dict | set) or name in ("_parameters", "_buffers")
        object.__setattr__(probe, name, value if shared else copy.copy(value))
    for name, child in pl_module.named_children():
        if isinstance(child, Metric | MetricCollection):
            probe._modules[name] = copy.deepcopy(child)
    for name in ("log", "log_dict"):
        object.__setattr__(probe, name, lambda *args, **options: None)
    return probe
