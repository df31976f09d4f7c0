"""Callbacks that edit the model of any LightningModule: checkpoints, strategy and optimizers."""

import gc
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_compress.compression_state import (
    RestoresCompression,
    restore_compression_,
    store_compression,
)
from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.models.manifest import COMPRESSION

from .rewinding import rewind_schedule_, schedule_state
from .run import TargetProgress, require_single

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelEdit(L.Callback, HyperparametersMixin):
    """A callback that edits the model; checkpoints hold its compression state.

    Attributes:
        target_reached: whether the edit is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress = TargetProgress(type(self).__name__)

    @property
    def target_reached(self) -> bool:
        """Whether the edit is done."""
        return self._progress.target_reached

    @target_reached.setter
    def target_reached(self, reached: bool) -> None:
        self._progress.target_reached = reached

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second callback of this kind; restore the compression state of checkpoints."""
        require_single(trainer, self)
        follow_checkpoints(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the compression state."""
        store_compression(edited_module(pl_module), checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        self._progress.load_state_dict(state_dict)


def edited_module(pl_module: L.LightningModule) -> nn.Module:
    """The module that carries edits and masks: the Hugging Face model, or the whole module."""
    return transformer_in(pl_module) or pl_module


def follow_checkpoints(pl_module: L.LightningModule) -> None:
    """Restore the compression state of a checkpoint before its weights are loaded.

    Lightning calls the module's ``on_load_checkpoint`` before it loads the weights and that of
    callbacks afterwards, so the module's is extended where it does not restore the state itself.
    """
    if isinstance(pl_module, RestoresCompression):
        return
    if "on_load_checkpoint" in vars(pl_module):  # another callback has done it
        return
    own_hook = pl_module.on_load_checkpoint

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        if COMPRESSION in checkpoint:
            restore_compression_(edited_module(pl_module), checkpoint[COMPRESSION])
        own_hook(checkpoint)

    pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]


def reshapable_model(pl_module: L.LightningModule) -> "PreTrainedModel":
    """The Hugging Face model in a module.

    Raises:
        InputError: there is none.
    """
    model = transformer_in(pl_module)
    if model is None:
        raise InputError(
            f"{type(pl_module).__name__} holds no Hugging Face model, whose layers, heads or "
            "neurons could be removed"
        )
    return model


def require_reshapable(trainer: L.Trainer) -> None:
    """Refuse strategies that hold parameters in a form of their own.

    Raises:
        InputError: the strategy is neither ``ddp`` nor for one device.
    """
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise InputError(
            f"trainer.strategy: {type(trainer.strategy).__name__} keeps parameters in a form of "
            "its own and cannot follow when some are removed; use ddp, or one device"
        )


def follow_reshaping(trainer: L.Trainer) -> None:
    """Let the processes exchange the gradients of the parameters that there are now."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        # The old wrapper takes its hooks off the parameters that stay when it is collected.
        gc.collect()
        strategy.configure_ddp()


def rebuild_optimizers(trainer: L.Trainer) -> None:
    """Rebuild the optimizers with the new parameters; states of remaining parameters are kept."""
    optimizers, schedules = trainer.optimizers, trainer.lr_scheduler_configs
    trainer.strategy.setup_optimizers(trainer)
    for old, new in zip(optimizers, trainer.optimizers, strict=True):
        there = {weight for group in new.param_groups for weight in group["params"]}
        new.state.update({weight: state for weight, state in old.state.items() if weight in there})
    for before, now in zip(schedules, trainer.lr_scheduler_configs, strict=True):
        rewind_schedule_(now.scheduler, schedule_state(before.scheduler))


def find_unused_parameters(trainer: L.Trainer, find: bool) -> bool:
    """Set DDP's ``find_unused_parameters``; returns the value before."""
    if not isinstance(trainer.strategy, DDPStrategy):
        return False
    options = trainer.strategy._ddp_kwargs
    before = bool(options.get("find_unused_parameters", False))
    options["find_unused_parameters"] = find
    return before
