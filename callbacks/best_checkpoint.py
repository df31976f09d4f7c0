"""The best checkpoint of a run that compresses.

Lightning chooses the best checkpoint by the validation metric alone. A dense epoch is nearly always
better than a compressed one, so only what has reached the target compression may compete. Nothing
in Lightning's interface restarts the choice: :func:`restart_best_checkpoint` and
:func:`save_as_best` are the only two places that write the attributes of its callbacks.
"""

import copy
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from .run import run_folder


def restart_best_checkpoint(trainer: L.Trainer) -> None:
    """Make ModelCheckpoint and EarlyStopping forget all epochs so far.

    Call it when the target compression is reached. Checkpoint files stay.
    """
    for checkpoint in _model_checkpoints(trainer):
        if checkpoint.monitor is not None:
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


def load_best(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Load the weights of the best checkpoint, if a ModelCheckpoint has chosen one."""
    paths = [one.best_model_path for one in _model_checkpoints(trainer) if one.best_model_path]
    if not paths:
        return
    checkpoint = trainer.strategy.load_checkpoint(paths[0], weights_only=True)
    pl_module.on_load_checkpoint(copy.copy(checkpoint))
    pl_module.load_state_dict(checkpoint["state_dict"])


def save_as_best(trainer: L.Trainer) -> None:
    """Save a checkpoint of the model as it is, which becomes the best one of the run."""
    for one in _model_checkpoints(trainer):
        folder = one.dirpath or run_folder(trainer) / "checkpoints"
        one.best_model_path = str(Path(folder) / "post_training.ckpt")
        one.best_model_score = None
    # Afterwards: a checkpoint holds the path of the best one, which Lightning reads back.
    for path in dict.fromkeys(one.best_model_path for one in _model_checkpoints(trainer)):
        trainer.save_checkpoint(path, weights_only=False)


def _model_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(-torch.inf if mode == "max" else torch.inf)
