"""The folder of a run, and the dense model kept in it."""

from pathlib import Path
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_compress.models import save_compressed, transformer_in

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
