"""Checkpoints of models that change what they are made of, of any LightningModule.

What has to know when parameters are replaced while a model trains: strategy and optimizers.
"""

import gc
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.saving import compression_state, restore_compression_

from .rewinding import rewind_schedule_, schedule_state
from .run import require_single
from .target_progress import TargetProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_KEY = "compression"


class ModelEdit(L.Callback, HyperparametersMixin):
    """A callback that edits the model; what it has become lies in checkpoints beside the weights.

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
        """Refuse a second callback of this kind, and follow the shapes of checkpoints."""
        require_single(trainer, self)
        _follow_checkpoints(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the shape beside the weights."""
        model = transformer_in(pl_module)
        if model is not None:
            checkpoint[_KEY] = compression_state(model)

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        self._progress.load_state_dict(state_dict)


def _follow_checkpoints(pl_module: L.LightningModule) -> None:
    """Let the module take a checkpoint's shape before its weights arrive.

    Lightning calls the module's hook then; a callback's own comes too late.
    """
    if "on_load_checkpoint" in vars(pl_module):  # done already
        return
    own_hook = pl_module.on_load_checkpoint

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        model = transformer_in(pl_module)
        if model is not None and _KEY in checkpoint:
            restore_compression_(model, checkpoint[_KEY])
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
    """Make optimizers that know of new parameters; what the old ones knew of others goes on."""
    optimizers, schedules = trainer.optimizers, trainer.lr_scheduler_configs
    trainer.strategy.setup_optimizers(trainer)
    for old, new in zip(optimizers, trainer.optimizers, strict=True):
        there = {weight for group in new.param_groups for weight in group["params"]}
        new.state.update({weight: state for weight, state in old.state.items() if weight in there})
    for before, now in zip(schedules, trainer.lr_scheduler_configs, strict=True):
        rewind_schedule_(now.scheduler, schedule_state(before.scheduler))


def find_unused_parameters(trainer: L.Trainer, find: bool) -> bool:
    """Tell DDP whether some of what learns may not be used in every batch; gives what it was."""
    if not isinstance(trainer.strategy, DDPStrategy):
        return False
    options = trainer.strategy._ddp_kwargs
    before = bool(options.get("find_unused_parameters", False))
    options["find_unused_parameters"] = find
    return before
