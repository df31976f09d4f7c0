"""Structured pruning of a trained model without further training."""

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.evaluation.latency import seconds_per_unit
from lightning_compress.models import manifest_of, structure_of, units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.families import UnitKind
from lightning_compress.models.forward import model_inputs
from lightning_compress.progress import progress_bar
from lightning_compress.pruning.post_training import prune_post_training_
from lightning_compress.pruning.selection import (
    LayerMinimum,
    budget_of,
    select_units,
    total_cost,
    unit_macs,
)
from lightning_compress.types import Batch, main_input

from .calibration_batches import calibration_for
from .figures import log_remaining
from .post_training import PostTraining
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PostTrainingPruning(PostTraining):
    """Remove heads and neurons from a trained model in minutes, without further training.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint watches the
    run, and leaves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all. Works on any LightningModule around a Hugging Face model.

    Args:
        removed_macs_fraction: fraction of the blocks' multiply-accumulates (MACs) that is removed,
            in (0, 1), for examples as long as the training's are on average.
        removed_latency_fraction: or the fraction of the time spent in heads and neurons that is
            removed, in (0, 1), as measured on this machine and device.
        minimum_heads: number of heads that every layer keeps, at least 1.
        minimum_neurons: number of neurons that every layer keeps, at least 1.
        multiple: the number of neurons that a layer keeps is a multiple of this, for the
            alignment that matrix kernels prefer.
        calibration_examples: number of training examples for the selection and the
            reconstruction, at least 1.

    Raises:
        InputError: before the training starts; an option is out of range, the budget cannot be
            met, or the module holds no Hugging Face model of a known family.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
    https://arxiv.org/abs/2204.09656; for the differences see
    ``lightning_compress.pruning.post_training``. The importance is the Fisher information, by
    definition of the method.

    Example::

        trainer:
          max_epochs: 0
          callbacks:
            - class_path: lightning_compress.callbacks.PostTrainingPruning
              init_args: {removed_macs_fraction: 0.3}
    """

    def __init__(
        self,
        *,
        removed_macs_fraction: float | None = None,
        removed_latency_fraction: float | None = None,
        minimum_heads: int = 1,
        minimum_neurons: int = 8,
        multiple: int = 8,
        calibration_examples: int = 1000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._budget = budget_of(
            removed_macs_fraction=removed_macs_fraction,
            removed_latency_fraction=removed_latency_fraction,
        )
        self._minimums: dict[UnitKind, LayerMinimum] = {
            "heads": LayerMinimum(minimum_heads),
            "neurons": LayerMinimum(minimum_neurons, multiple),
        }
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")
        self._calibration_examples = calibration_examples

    @property
    def _needs_calibration(self) -> bool:
        return True

    def _check(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        units = [one for kind in self._minimums for one in units_of(model, kind)]
        costs = unit_macs(model, units, tokens=1)
        max_cost = self._budget.remaining(total_cost(units, costs), 1.0)
        scores = {one.output: torch.zeros(one.count) for one in units}
        select_units(units, scores, costs, max_cost, self._minimums)

    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str:
        calibration = calibration_for(trainer, model, self._calibration_examples)
        steps = 2 + 2 * len(structure_of(model).blocks)
        with progress_bar(steps, shown=trainer.progress_bar_callback is not None) as advance:
            before = self._prune(trainer, model, calibration, advance)
        log_remaining(trainer, model, list(self._minimums), trainer.global_step)
        left = {kind: sum(one.count for one in units_of(model, kind)) for kind in self._minimums}
        parts = (f"{left[kind]:,} of {before[kind]:,} {kind}" for kind in left)
        return f"Pruned without training: {' and '.join(parts)} remain."

    def _prune(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        advance: Any,
    ) -> dict[UnitKind, int]:
        """Prune; returns the number of units before."""
        units = [one for kind in self._minimums for one in units_of(model, kind)]
        if self._budget.removed_latency_fraction is None:
            costs = self._budget.costs(model, units, calibration.tokens(model))
        else:
            # Batches differ in length; the median one is measured.
            ordered = sorted(calibration.batches, key=lambda one: main_input(one).shape[1])
            measured = seconds_per_unit(model, ordered[len(ordered) // 2], units)
            costs = trainer.strategy.broadcast(measured)
            if not any(costs.values()):
                raise InputError(
                    "removed_latency_fraction: heads and neurons take no measurable time on this "
                    "machine: the model is too small or the machine too busy. Use "
                    "removed_macs_fraction"
                )
        prune_post_training_(
            model,
            calibration,
            _logits_of,
            costs,
            self._budget.remaining(total_cost(units, costs), 1.0),
            self._minimums,
            on_progress=lambda what: advance(what, 1),
        )
        require_agreement(trainer, digest_of(manifest_of(model)), "which units to remove")
        return {
            kind: sum(one.count for one in units if one.kind == kind) for kind in self._minimums
        }


def _logits_of(model: nn.Module, batch: Batch) -> Tensor:
    # Of a model without a head, its first output.
    output: Tensor = model(**model_inputs(model, batch))[0]
    return output
