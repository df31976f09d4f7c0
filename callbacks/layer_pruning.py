"""When to remove whole layers."""

from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L

from lightning_compress.errors import InputError
from lightning_compress.models import structure_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.layers import layer_count, remove_layers_
from lightning_compress.pruning.layer_importance import LayerScore, select_layers

from .round_pruning import RoundPruning
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LayerPruning(RoundPruning):
    """Remove whole layers from any LightningModule's Hugging Face model while it trains.

    Args:
        removed_count: number of layers that is removed, at least 1.
        score: by which the least important layer goes, and then the next: ``divergence`` (how much
            the predictions change without it), ``influence`` (how much it turns what passes
            through), ``last`` or ``random`` (what the others have to beat).
        pruning_steps: number of steps, evenly spread from warm-up to recovery; with one, all layers
            are removed right after the warm-up.
        options: when, see :class:`RoundPruning`.

    Raises:
        InputError: an option is out of range, the rounds do not fit into the run, or the module
            holds no Hugging Face model whose layers can go; all of it before the training starts.
    """

    charts: ClassVar = {"remaining layers": "^layers$"}

    def __init__(
        self,
        *,
        removed_count: int,
        score: LayerScore = "divergence",
        pruning_steps: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(pruning_steps=pruning_steps, **options)
        self.save_hyperparameters(logger=False)
        if removed_count < 1:
            raise InputError(f"removed_count must be at least 1, not {removed_count}")
        self.removed_count = removed_count
        self.score = score
        self._before: int | None = None  # how many layers there were before the first round

    def state_dict(self) -> dict[str, Any]:
        """Progress, and what there was to begin with."""
        return {**super().state_dict(), "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring progress back."""
        super().load_state_dict(state_dict)
        self._before = state_dict["before"]

    def _check(self, model: "PreTrainedModel") -> None:
        structure_of(model)
        layers = layer_count(model)
        if layers is None:
            raise InputError(
                f"LayerPruning: the layers of {type(model).__name__} are one block, used again and "
                "again: set model.config.num_hidden_layers to use it fewer times"
            )
        if self._before is None and self.removed_count >= layers:
            raise InputError(
                f"removed_count: the model has {layers} layers, and at least one has to stay"
            )

    def _prune(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
    ) -> None:
        there = len(structure_of(model).layers)
        self._before = self._before or there
        due = round(self.removed_count * progress) - (self._before - there)
        removed, _ = select_layers(model, calibration, due, self.score)
        require_agreement(trainer, digest_of(removed), "which layers to remove")
        remove_layers_(model, removed, optimizers=trainer.optimizers, technique="layer_pruning")

    def _remaining(self, model: "PreTrainedModel") -> str:
        return f"{len(structure_of(model).layers)} of {self._before} layers"

    def _log(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"layers": len(structure_of(model).layers)}, max(self._step, 0))
