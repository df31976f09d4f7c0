"""The folder of a run, and the dense model kept in it.

How long a run is and how far it has come, in optimizer steps.

Processes that train one model together must make the same decisions about it.

Which checkpoint is the best: only those that have reached the target compression compete.
"""

import hashlib
import math
from pathlib import Path
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_compress.models import transformer_in
from lightning_compress.saving import save_compressed

UNNAMED = Path("logs", "unnamed")


# Where the dense model of each transformer in this process lies: a folder alone does not tell, it
# may be left from an earlier run.
_dense: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> Path:
    """Where the run writes.

    The logger's folder, in which Lightning puts the checkpoints too; without a logger the
    Trainer's ``default_root_dir``, or ``logs/unnamed`` where that is just the working directory.

    The same on all ranks, which must all call it: it is broadcast from rank 0.
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


def keep_dense(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Keep the model as it is before its first edit in the run's ``dense/`` folder, once.

    The dense model of an earlier run in the same folder is replaced; that of a run which goes on
    from a checkpoint stays. A LightningModule without a Hugging Face transformer has no such
    folder format and is skipped, and a dev run leaves nothing.
    """
    model = transformer_in(pl_module)
    if model is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set dynamically
        return
    folder = run_folder(trainer) / "dense"
    if keeps_dense(folder, model):
        return
    resumed = trainer.ckpt_path is not None and folder.is_dir()
    if trainer.is_global_zero and not resumed:
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        save_compressed(model, folder, tokenizer)
    trainer.strategy.barrier("keep_dense")
    _dense[model] = folder.absolute()


def keeps_dense(folder: Path, model: nn.Module) -> bool:
    """Whether :func:`keep_dense` has kept the dense model of this one there, in this process."""
    return _dense.get(model) == folder.absolute()


def run_length(trainer: L.Trainer) -> tuple[float, float]:
    """Optimizer steps of the whole run and of one epoch; infinite or -1 where it is not known.

    To be called once the training starts: it sets the training data up, and Lightning resumes
    their position only if they are set up after the checkpoint has been read.
    """
    run = trainer.estimated_stepping_batches
    epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    return run, math.ceil(epoch) if math.isfinite(epoch) else epoch


def steps_done(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """Optimizer steps so far; with manual optimization, where there may be several to a batch or
    none, the batches so far.
    """
    if pl_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def digest_of(decision: object) -> int:
    """A number below 2**56 that tells plain data apart, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(decision).encode()).digest()[:7], "big")


def require_agreement(trainer: L.Trainer, decision: int, what: str) -> None:
    """Stop all processes if ``decision``, a hash below 2**63, is not the same in each of them.

    Raises:
        RuntimeError: the processes disagree on ``what``.
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
