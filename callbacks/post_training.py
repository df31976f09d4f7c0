"""Compression of a trained model without further training, once at the end of ``fit``."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.models.forward import evaluating

from .calibration_batches import check_calibration
from .model_edit import ModelEdit, require_reshapable, reshapable_model
from .run import dense_models, is_dev_run, model_checkpoints, run_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PostTraining(ModelEdit):
    """Compresses the Hugging Face model in any LightningModule without further training.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint watches the
    run, and leaves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all.
    """

    @abstractmethod
    def _check(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        """Refuse a model that cannot be compressed, before anything is trained."""

    @abstractmethod
    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str | None:
        """Compress the model, in eval mode, the same on all processes; return a message.

        None: the model was left as it is, and so are the checkpoints.
        """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the model can be compressed."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if not self.target_reached:
            self._check(trainer, model)

    @property
    @abstractmethod
    def _needs_calibration(self) -> bool:
        """Whether training examples are needed."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before the training that its data can be used after it."""
        if self._needs_calibration and not self.target_reached:
            check_calibration(trainer, reshapable_model(pl_module))

    def _options_are_fixed(self, state: Mapping[str, Any]) -> bool:
        """Only when it is done: before the end of ``fit`` nothing depends on them."""
        return bool(state["target_reached"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compress, and make the result the best checkpoint."""
        model = reshapable_model(pl_module)
        if self.target_reached or is_dev_run(trainer):
            return
        load_best(trainer, pl_module)
        dense_models.save(trainer, pl_module)
        with evaluating(model):
            message = self._compress(trainer, model)
        if message is None:
            return
        self.target_reached = True
        rank_zero_info(message)
        save_as_best(trainer)


def load_best(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Load the weights of the best checkpoint, if a ModelCheckpoint has chosen one."""
    paths = [one.best_model_path for one in model_checkpoints(trainer) if one.best_model_path]
    if not paths:
        return
    checkpoint = trainer.strategy.load_checkpoint(paths[0], weights_only=True)
    pl_module.on_load_checkpoint(copy.copy(checkpoint))
    pl_module.load_state_dict(checkpoint["state_dict"])


def save_as_best(trainer: L.Trainer) -> None:
    """Save a checkpoint of the model as it is, which becomes the best one of the run."""
    for one in model_checkpoints(trainer):
        folder = one.dirpath or run_folder(trainer) / "checkpoints"
        one.best_model_path = str(Path(folder) / "post_training.ckpt")
        one.best_model_score = None
    # Afterwards: a checkpoint holds the path of the best one, which Lightning reads back.
    for path in dict.fromkeys(one.best_model_path for one in model_checkpoints(trainer)):
        trainer.save_checkpoint(path, weights_only=False)
