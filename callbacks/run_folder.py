"""The folder of a run, and the dense model kept in it."""

from pathlib import Path

import lightning as L

from lightning_compress.models import save_compressed, transformer_in


def run_folder(trainer: L.Trainer) -> Path:
    """Where the run writes: the logger's folder, or the Trainer's root without a logger.

    The same on all ranks, which must all call it: Lightning broadcasts it from rank 0.
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def keep_dense(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Keep the model as it is before its first edit in the run's ``dense/`` folder, once.

    A LightningModule without a Hugging Face transformer has no such folder format and is skipped.
    """
    folder = run_folder(trainer) / "dense"
    model = transformer_in(pl_module)
    if model is not None and trainer.is_global_zero and not folder.exists():
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        save_compressed(model, folder, tokenizer)
    trainer.strategy.barrier("keep_dense")
