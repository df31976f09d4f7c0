"""Which checkpoint is the best: only those that have reached the target compression compete."""

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


def restart_selection(trainer: L.Trainer) -> None:
    """Make ModelCheckpoint and EarlyStopping forget what they have seen.

    To be called when the target compression is reached: a dense epoch is nearly always better
    than a compressed one and would win otherwise. The files written so far stay.
    """
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor is not None:
            checkpoint.best_k_models = {}
            checkpoint.kth_best_model_path = ""
            checkpoint.kth_value = _worst(checkpoint.mode)
            checkpoint.best_model_path = ""
            checkpoint.best_model_score = None
            checkpoint.current_score = None
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping):
            stopping.wait_count = 0
            stopping.best_score = _worst(stopping.mode)


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(-torch.inf if mode == "max" else torch.inf)
