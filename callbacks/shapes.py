"""Checkpoints of models that change their shape, of any LightningModule."""

from typing import Any

import lightning as L

from lightning_compress.models import transformer_in
from lightning_compress.models.saving import compression_state, restore_compression_

KEY = "compression"


def follow_checkpoints(pl_module: L.LightningModule) -> None:
    """Let the module take a checkpoint's shape before its weights arrive.

    Lightning calls the module's hook then; a callback's own comes too late.
    """
    if "on_load_checkpoint" in vars(pl_module):  # done already
        return
    own_hook = pl_module.on_load_checkpoint

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        model = transformer_in(pl_module)
        if model is not None and KEY in checkpoint:
            restore_compression_(model, checkpoint[KEY])
        own_hook(checkpoint)

    pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]


def add_shape(pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Put into a checkpoint what :func:`follow_checkpoints` needs."""
    model = transformer_in(pl_module)
    if model is not None:
        checkpoint[KEY] = compression_state(model)
