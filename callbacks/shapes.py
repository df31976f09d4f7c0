"""Checkpoints of models that change what they are made of, of any LightningModule."""

from typing import Any

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lightning_compress.models import transformer_in
from lightning_compress.models.saving import compression_state, restore_compression_

_KEY = "compression"


class ModelEdit(L.Callback, HyperparametersMixin):
    """A callback that edits the model; what it has become lies in checkpoints beside the weights.

    Attributes:
        target_reached: whether it has done what it was to do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.target_reached = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Follow the shapes of checkpoints."""
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
        return {"target_reached": self.target_reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring progress back."""
        self.target_reached = state_dict["target_reached"]


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
