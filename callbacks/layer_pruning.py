"""Layer pruning: whole layers are removed while a model trains."""

from typing import TYPE_CHECKING, Any

import lightning as L

from lightning_compress.errors import InputError, require_choice
from lightning_compress.models import structure_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.layers import layer_count, remove_layers_, require_removable
from lightning_compress.pruning.layer_importance import LAYER_SCORES, LayerScore, select_layers
from lightning_compress.types import Chart, KeywordsOf

from .calibration_batches import require_predictions
from .gradual_pruning import GradualPruning, ScheduleOptions
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LayerPruning(GradualPruning):
    """Remove whole layers from any LightningModule's Hugging Face model while it trains.

    The run has a dense warm-up, then the pruning steps (one by default), then recovery.

    Args:
        removed_count: number of layers that is removed, at least 1 and fewer than there are.
        score: importance by which the least important layer is removed, then the least important
            of the rest: ``divergence`` (KL divergence of the predictions without the layer),
            ``influence`` (one minus the cosine between its input and output), ``last`` (later
            layers first) or ``random`` (the baseline).
        pruning_steps: number of steps in which the layers are removed, evenly spread from the end
            of the warm-up to the start of the recovery, at least 1; a single one is at the end of
            the warm-up.
        options: when layers are removed: ``warmup``, ``recovery``, ``unit`` and
            ``calibration_examples``, see :class:`GradualPruning`.

    Raises:
        InputError: before the training starts; an option is out of range, the pruning steps do not
            fit into the run, or the module holds no Hugging Face model with separate layers.

    Sources: ``lightning_compress.pruning.layer_importance``.

    Example::

        LayerPruning(removed_count=1, warmup=0.0)
    """

    def __init__(
        self,
        *,
        removed_count: int,
        score: LayerScore = "divergence",
        pruning_steps: int = 1,
        **options: KeywordsOf[ScheduleOptions],
    ) -> None:
        super().__init__(
            removal=_LayerRemoval(removed_count, score), pruning_steps=pruning_steps, **options
        )


class _LayerRemoval:
    """Removes the least important layers, one after the other."""

    charts: tuple[Chart, ...] = (Chart("remaining layers", ("^layers$",)),)

    def __init__(self, count: int, score: LayerScore) -> None:
        if count < 1:
            raise InputError(f"removed_count must be at least 1, not {count}")
        require_choice("score", score, LAYER_SCORES)
        self._count = count
        self._score = score
        self._dense: int | None = None  # layers before the first pruning step

    def check(self, model: "PreTrainedModel") -> None:
        structure_of(model)
        if self._score == "divergence":
            require_predictions(model, "score: divergence", "choose score: influence")
        layers = layer_count(model)
        if layers is None:
            raise InputError(
                f"LayerPruning: the layers of {type(model).__name__} share one block: set "
                "model.config.num_hidden_layers to apply it fewer times"
            )
        require_removable(model)
        if self._count >= layers:
            raise InputError(
                f"removed_count: the model has {layers} layers, at least one of which must remain"
            )

    def remove_(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
        step: int,
    ) -> None:
        layers = len(structure_of(model).layers)
        self._dense = self._dense or layers
        due = round(self._count * progress) - (self._dense - layers)
        removed, _ = select_layers(model, calibration, due, self._score)
        require_agreement(trainer, digest_of(removed), "which layers to remove")
        remove_layers_(model, removed, optimizers=trainer.optimizers, technique="layer_pruning")

    def remaining(self, model: "PreTrainedModel") -> str:
        return f"{len(structure_of(model).layers)} of {self._dense} layers"

    def log(self, trainer: L.Trainer, model: "PreTrainedModel", step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"layers": len(structure_of(model).layers)}, step)

    def state_dict(self) -> dict[str, Any]:
        return {"dense": self._dense}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._dense = state_dict["dense"]
