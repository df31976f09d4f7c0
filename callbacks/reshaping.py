"""What has to know when parameters are replaced while a model trains: the strategy."""

import gc

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_compress.errors import InputError


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
