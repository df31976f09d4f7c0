"""The dense model of a run: saved before the first edit, and compared with at the end."""

from pathlib import Path
from weakref import WeakKeyDictionary

import lightning as L
from torch import nn

from lightning_compress.data.info import DataInfo
from lightning_compress.models import transformer_in
from lightning_compress.saving import save_compressed

from .run import is_dev_run, run_folder


class DenseModels:
    """Saves the dense version of a model once, and knows the folder of every one it has saved.

    The folder alone does not tell whether its ``dense/`` belongs to a model: it may be that of an
    earlier run. So the folders are kept by model, for as long as the model is alive.
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
