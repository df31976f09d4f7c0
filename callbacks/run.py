"""The run that a callback is part of: folder, dense model, length, seed, processes, progress.

The best checkpoint of a run is chosen from the step on at which a technique reaches its target.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_compress.data.info import DataInfo
from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.saving import save_compressed

UNNAMED = Path("logs", "unnamed")


def run_folder(trainer: L.Trainer) -> Path:
    """The folder that the run writes to.

    The logger's folder, in which Lightning puts the checkpoints too; without a logger the
    Trainer's ``default_root_dir``, or ``logs/unnamed`` where that is the working directory.

    All ranks must call it: the folder is broadcast from rank 0.
    """
    return Path(trainer.strategy.broadcast(str(_own_folder(trainer))))


def _own_folder(trainer: L.Trainer) -> Path:
    logger = trainer.logger
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    if logger is not None and logger.save_dir is not None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir, str(logger.name), version)
    root = Path(trainer.default_root_dir)
    return root / UNNAMED if root.absolute() == Path.cwd() else root


class DenseModels:
    """Saves the dense version of a model once and records the folder.

    A ``dense/`` folder may belong to an earlier run, so its existence is not proof that it holds
    the dense version of a model. Folders are recorded per model, with weak references.
    """

    def __init__(self) -> None:
        self._folders: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the model to ``dense/`` of the run's folder, unless that is done.

        Replaces the dense model of an earlier run in the folder; keeps it if this run resumes from
        a checkpoint. Does nothing in a dev run, and for a LightningModule without a Hugging Face
        transformer.
        """
        model = transformer_in(pl_module)
        if model is None or is_dev_run(trainer):
            return
        folder = run_folder(trainer) / "dense"
        if self.is_saved(model, folder):
            return
        resumed = trainer.ckpt_path is not None and folder.is_dir()
        if trainer.is_global_zero and not resumed:
            tokenizer = DataInfo.of_trainer(trainer).tokenizer
            save_compressed(model, folder, tokenizer)
        trainer.strategy.barrier("dense_model")
        self._folders[model] = folder.absolute()

    def is_saved(self, model: nn.Module, folder: Path) -> bool:
        """Whether this process has saved the dense version of ``model`` to ``folder``."""
        return self._folders.get(model) == folder.absolute()


#: Of all runs of this process: a model keeps its dense folder from ``fit`` to ``test``, which may
#: have a Trainer each.
dense_models = DenseModels()


# Lightning's connectors set the following three attributes, so mypy does not find them.
def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """All callbacks of the run, Lightning's own included."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def is_dev_run(trainer: L.Trainer) -> bool:
    """Whether ``trainer.fast_dev_run`` is set: the run writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def log_interval(trainer: L.Trainer) -> int:
    """Optimizer steps between two logged values, ``trainer.log_every_n_steps``; 0 for none."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return interval


def require_single(trainer: L.Trainer, callback: L.Callback, remedy: str = "keep one") -> None:
    """Refuse a second callback of the same class.

    Raises:
        InputError: the run has two of them.
    """
    if sum(type(one) is type(callback) for one in callbacks_of(trainer)) > 1:
        raise InputError(f"trainer.callbacks: {type(callback).__name__} is given twice; {remedy}")


def run_seed() -> str:
    """The seed set by ``seed_everything``, which Lightning keeps in the environment; or ``"0"``."""
    return os.environ.get("PL_GLOBAL_SEED", "0")


def run_length(trainer: L.Trainer) -> tuple[float, float]:
    """Optimizer steps of the whole run and of one epoch; infinite or -1 if unknown.

    Call it in ``on_train_start`` and not earlier: it sets the training data up, and Lightning
    restores the position in the data only if they are set up after the checkpoint has been read.
    """
    run = trainer.estimated_stepping_batches
    epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    return run, math.ceil(epoch) if math.isfinite(epoch) else epoch


def steps_done(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """Optimizer steps so far; with manual optimization, which may step any number of times per
    batch, the batches so far.
    """
    if pl_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def digest_of(decision: object) -> int:
    """A hash of plain data below 2**56 that is equal in every process."""
    return int.from_bytes(hashlib.sha256(repr(decision).encode()).digest()[:7], "big")


def require_agreement(trainer: L.Trainer, decision: int, what: str) -> None:
    """Stop all processes unless they have made the same decision about the model.

    Args:
        trainer: of the run.
        decision: a hash below 2**63 of the decision, see :func:`digest_of`.
        what: what was decided, for the message.

    Raises:
        RuntimeError: the processes disagree.
    """
    if trainer.world_size == 1:
        return
    mine = torch.tensor(decision, device=trainer.strategy.root_device)
    decisions = trainer.strategy.all_gather(mine).flatten().tolist()
    if len(set(decisions)) > 1:
        raise RuntimeError(
            f"at step {trainer.global_step} the processes disagree on {what}: their weights have "
            "drifted apart, although a strategy such as ddp keeps them equal"
        )


class TargetProgress:
    """How far a callback has come towards its target; each callback holds one.

    Args:
        callback: name of the callback, for messages.

    Attributes:
        step: the last optimizer step that was handled; -1 before the first.
        target_reached: whether the target is reached.
        shortfall: of a training that ended before its target: what was reached instead.
    """

    def __init__(self, callback: str) -> None:
        self._callback = callback
        self.step = -1
        self.target_reached = False
        self.shortfall: str | None = None

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
        self.target_reached, self.shortfall = True, None
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
            self.shortfall = (
                f"{self._callback}: the run ended at step {step}, before its target at step {due}: "
                f"{state}; train longer, or {remedy}"
            )
            rank_zero_warn(self.shortfall)

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {
            "step": self.step,
            "target_reached": self.target_reached,
            "shortfall": self.shortfall,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        self.step = state_dict["step"]
        self.target_reached = state_dict["target_reached"]
        self.shortfall = state_dict["shortfall"]


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
