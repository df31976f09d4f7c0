"""Callbacks that edit the model of any LightningModule: checkpoints, strategy and optimizers."""

import copy
import gc
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.parallel import DistributedDataParallel

from lightning_compress.compression_state import (
    RestoresCompression,
    edited_module,
    restore_from_checkpoint_,
    store_compression,
)
from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.models.manifest import require_float
from lightning_compress.resuming import require_same_options

from .rewinding import rewind_schedule_, schedule_state
from .run import TargetProgress, callbacks_of, require_single

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_AVERAGING = (WeightAveraging, StochasticWeightAveraging)


class ModelEdit(L.Callback, HyperparametersMixin):
    """A callback that edits the model; checkpoints hold its compression state and its options.

    It starts anew for every fit, but goes on if the same Trainer fits the same module again.

    Attributes:
        target_reached: whether the edit is done.
        remedy_for_two: what to do about two callbacks of one kind, for the message.
    """

    remedy_for_two: ClassVar[str] = "keep one"

    def __init__(self) -> None:
        super().__init__()
        self._progress = TargetProgress(type(self).__name__)
        self._new_state: dict[str, Any] | None = None  # before the first fit
        self._fit: tuple[ref[L.Trainer], ref[L.LightningModule]] | None = None  # the last one

    @property
    def target_reached(self) -> bool:
        """Whether the edit is done."""
        return self._progress.target_reached

    @target_reached.setter
    def target_reached(self, reached: bool) -> None:
        self._progress.target_reached = reached

    @property
    def shortfall(self) -> str | None:
        """What has been reached, where the last training ended before the target."""
        return self._progress.shortfall

    def last_edit(self, trainer: L.Trainer) -> int:
        """The optimizer step after which the shape of the model does not change any more."""
        return 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run that edits do not fit; keep the compression state in checkpoints."""
        require_single(trainer, self, self.remedy_for_two)
        if stage == "fit":
            require_one_copy(trainer, type(self).__name__)
            self._start_anew(trainer, pl_module)
        follow_checkpoints(pl_module)

    def _start_anew(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the state of an earlier fit of another Trainer or module."""
        if self._new_state is None:
            self._new_state = copy.deepcopy(self.state_dict())
        if self._fit is not None and [one() for one in self._fit] != [trainer, pl_module]:
            self.load_state_dict(copy.deepcopy(self._new_state))
        self._fit = ref(trainer), ref(pl_module)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume with other options than those of the checkpoint, or after the end.

        Raises:
            InputError: an option has changed, or the checkpoint holds a quantized model.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is not None and self._options_are_fixed(saved):
            require_same_options(type(self).__name__, saved["options"], self._options())
        model = transformer_in(pl_module)
        if model is not None:
            remedy = "resume from an earlier checkpoint, or measure this one with trainer.test"
            require_float(model, remedy, prepared=True)

    def _options_are_fixed(self, state: Mapping[str, Any]) -> bool:
        """Whether a run that is resumed from a state needs the options that it began with."""
        return True

    def _options(self) -> dict[str, Any]:
        """The options, as plain data."""
        return {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in self.hparams.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Progress and options, as plain data."""
        return {**self._progress.state_dict(), "options": self._options()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        self._progress.load_state_dict(state_dict)


def shortfalls(trainer: L.Trainer) -> list[str]:
    """What the edits of a run that ended before their targets have reached instead."""
    edits = [one for one in callbacks_of(trainer) if isinstance(one, ModelEdit)]
    return [one.shortfall for one in edits if one.shortfall is not None]


def follow_checkpoints(pl_module: L.LightningModule) -> None:
    """Put the compression state in checkpoints, and restore it before weights are loaded.

    Both by the hooks of the module, which are extended where it does not do so itself: Lightning
    calls that of callbacks after the weights are loaded, and not at all for checkpoints of weights
    only.
    """
    if isinstance(pl_module, RestoresCompression):
        return
    if "on_load_checkpoint" in vars(pl_module):  # another callback has done it
        return
    own_load, own_save = pl_module.on_load_checkpoint, pl_module.on_save_checkpoint

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        restore_from_checkpoint_(pl_module, checkpoint)
        own_load(checkpoint)

    def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
        own_save(checkpoint)
        store_compression(edited_module(pl_module), checkpoint)

    pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]
    pl_module.on_save_checkpoint = on_save_checkpoint  # type: ignore[method-assign]


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


def require_one_copy(trainer: L.Trainer, callback: str) -> None:
    """Refuse runs that keep the model, or copies of it, where an edit does not reach.

    Raises:
        InputError: a callback averages weights, or processes are started by ``spawn`` or ``fork``.
    """
    averaging = [one for one in callbacks_of(trainer) if isinstance(one, _AVERAGING)]
    if averaging:
        raise InputError(
            f"trainer.callbacks: {callback} changes the model while it is trained, and the "
            f"averaged weights of {type(averaging[0]).__name__} would be those of another model: "
            "train with averaging first, and compress the result in a second run"
        )
    start = getattr(trainer.strategy, "_start_method", "popen")
    if start != "popen":
        raise InputError(
            f"trainer.strategy: processes that are started by {start} return weights, but not the "
            f"edits of {callback}: use ddp"
        )


def require_reshapable(trainer: L.Trainer) -> None:
    """Refuse strategies and optimizers that hold parameters in a form of their own.

    Raises:
        InputError: the strategy is neither ``ddp`` nor for one device, or the optimizer is LBFGS.
    """
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise InputError(
            f"trainer.strategy: {type(trainer.strategy).__name__} keeps parameters in a form of "
            "its own and cannot follow when some are removed; use ddp, or one device"
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise InputError(
            "LBFGS keeps the history of all parameters in one vector and cannot follow when some "
            "are removed: return another optimizer from configure_optimizers"
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
