"""What compresses a trained model once, at the end of a fit: on the best weights, as the best."""

import copy
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.models.forward import evaluating

from .model_edit import ModelEdit, require_reshapable, reshapable_model
from .run import keep_dense, run_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AfterTraining(ModelEdit):
    """Compresses the Hugging Face model in any LightningModule without training it again.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint watches the
    run, and leaves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all.
    """

    @abstractmethod
    def _check(self, model: "PreTrainedModel") -> None:
        """Refuse what cannot be done to this model, before anything is trained."""

    @abstractmethod
    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str:
        """Do it to the model, in eval mode, the same on all processes; say what was done."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that it can be done."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if not self.target_reached:
            self._check(model)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compress, and make the result the best checkpoint."""
        model = reshapable_model(pl_module)
        if self.target_reached or trainer.fast_dev_run:  # type: ignore[attr-defined]  # dynamic
            return
        load_best(trainer, pl_module)
        keep_dense(trainer, pl_module)
        with evaluating(model):
            said = self._compress(trainer, model)
        self.target_reached = True
        rank_zero_info(said)
        save_as_best(trainer)


def load_best(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Go back to the best weights, if the run has chosen any."""
    best = next((one.best_model_path for one in _watching(trainer) if one.best_model_path), None)
    if best is None:
        return
    checkpoint = trainer.strategy.load_checkpoint(best, weights_only=True)
    pl_module.on_load_checkpoint(copy.copy(checkpoint))
    pl_module.load_state_dict(checkpoint["state_dict"])


def save_as_best(trainer: L.Trainer) -> None:
    """Save a checkpoint of the model as it is, and let it be the best of the run."""
    for one in _watching(trainer):
        folder = one.dirpath or run_folder(trainer) / "checkpoints"
        one.best_model_path = str(Path(folder) / "post_training.ckpt")
        one.best_model_score = None
    # Only now: a checkpoint says which the best one is, and who loads it believes that.
    for path in dict.fromkeys(one.best_model_path for one in _watching(trainer)):
        trainer.save_checkpoint(path, weights_only=False)


def _watching(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
