"""What has to know when parameters are replaced while a model trains: strategy and optimizers."""

import gc
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.pruning.rewinding import rewind_schedule_, schedule_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
