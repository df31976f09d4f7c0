"""Progress of a technique towards its target over the steps of a run.

The best checkpoint of a run is chosen from the target on.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .run import steps_done


class TargetProgress:
    """How far a callback has come towards its target; each callback holds one.

    Args:
        callback: name of the callback, for messages.

    Attributes:
        step: the last optimizer step that was handled; -1 before the first.
        target_reached: whether the target is reached.
    """

    def __init__(self, callback: str) -> None:
        self._callback = callback
        self.step = -1
        self.target_reached = False

    def enter_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether the current optimizer step is a new one; it counts as handled from then on.

        False between two batches of one step (gradient accumulation) and right after resuming.
        """
        step = steps_done(trainer, pl_module)
        if step == self.step:
            return False
        self.step = step
        return True

    def reach_target(self, trainer: L.Trainer, message: str) -> None:
        """The target is reached: from here on the best checkpoint is chosen."""
        self.target_reached = True
        restart_best_checkpoint(trainer)
        rank_zero_info(message)

    def warn_unless_reached(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *,
        due: int,
        state: str,
        remedy: str,
    ) -> None:
        """Warn at the end of training that the target was not reached.

        Args:
            trainer: of the run.
            pl_module: of the run.
            due: the optimizer step at which it would have been.
            state: what has been reached instead.
            remedy: the options to change.
        """
        if not self.target_reached:
            step = steps_done(trainer, pl_module)
            rank_zero_warn(
                f"{self._callback}: the run ended at step {step}, before its target at step {due}: "
                f"{state}; train longer, or {remedy}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {"step": self.step, "target_reached": self.target_reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        self.step = state_dict["step"]
        self.target_reached = state_dict["target_reached"]


def restart_best_checkpoint(trainer: L.Trainer) -> None:
    """Make ModelCheckpoint and EarlyStopping forget all epochs so far; checkpoint files stay.

    Lightning chooses the best checkpoint by the validation metric alone. A dense epoch is nearly
    always better than a compressed one, so only epochs that have reached the target compression
    may compete. Lightning's interface cannot restart the choice, so its attributes are set here.
    """
    for checkpoint in model_checkpoints(trainer):
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


def model_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """The run's ModelCheckpoint callbacks."""
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(-torch.inf if mode == "max" else torch.inf)
