"""Removal of attention heads and feed-forward neurons, all layers together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from lightning_compress.errors import require_choice
from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.families import UnitKind
from lightning_compress.models.structure import Units, linear_at
from lightning_compress.pruning.importance import UNIT_SCORES, UnitScore
from lightning_compress.pruning.reconstruction import (
    absorb_means_,
    input_statistics,
    least_squares_refit_,
)
from lightning_compress.pruning.selection import Budget, LayerMinimum, select_units, total_cost
from lightning_compress.types import Chart

from .figures import log_remaining, log_scores
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


@dataclass(frozen=True)
class _Dense:
    """The model before the first pruning step; ``cost`` for examples of ``tokens`` tokens."""

    tokens: float
    cost: float
    counts: dict[UnitKind, int]


class UnitRemoval:
    """Removes the least important heads, neurons or both until a budget is met.

    Args:
        budget: how much is removed in the end.
        minimums: which kinds of units are removed, and what every layer keeps of each.
        technique: name of the technique in the report.
        score: the importance, a key of ``UNIT_SCORES``.
        refit: fit the outgoing weights of the remaining units by least squares to the output of
            all units; otherwise the mean output of the removed units is added to the bias.

    Raises:
        InputError: the score is unknown.
    """

    def __init__(
        self,
        budget: Budget,
        minimums: Mapping[UnitKind, LayerMinimum],
        *,
        technique: str,
        score: UnitScore,
        refit: bool,
    ) -> None:
        require_choice("score", score, UNIT_SCORES)
        self._budget = budget
        self._minimums = minimums
        self._technique = technique
        self._score = score
        self._refit = refit
        self._dense: _Dense | None = None
        self.charts = tuple(Chart(f"remaining {kind}", (f"^{kind}/layer",)) for kind in minimums)

    def check(self, model: "PreTrainedModel") -> None:
        """Refuse a budget that the minimums do not allow, and layers that cannot be sliced."""
        units = self._units(model)
        for name in (name for one in units for name in (*one.inputs, one.output)):
            linear_at(model, name)  # raises if its weight is no parameter
        scores = {one.output: torch.zeros(one.count) for one in units}
        costs = self._budget.costs(model, units, tokens=1)
        max_cost = self._budget.remaining(total_cost(units, costs), 1.0)
        select_units(units, scores, costs, max_cost, self._minimums)

    def remove_(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
        step: int,
    ) -> None:
        """Score the units, select those to remove, compensate for them and remove them."""
        units = self._units(model)
        tokens = self._dense.tokens if self._dense else calibration.tokens(model)
        costs = self._budget.costs(model, units, tokens)
        if self._dense is None:
            counts = {kind: sum(u.count for u in units_of(model, kind)) for kind in self._minimums}
            self._dense = _Dense(tokens, total_cost(units, costs), counts)
        scores = UNIT_SCORES[self._score](model, units, calibration)
        scores = {name: score.cpu() for name, score in scores.items()}
        max_cost = self._budget.remaining(self._dense.cost, progress)
        removed = select_units(units, scores, costs, max_cost, self._minimums)
        require_agreement(trainer, digest_of(removed), "which heads and neurons to remove")
        log_scores(trainer, units, scores, step)
        statistics = input_statistics(model, units, calibration, pairs=self._refit)
        compensate_ = least_squares_refit_ if self._refit else absorb_means_
        for one in units:
            if one.layer in removed[one.kind]:
                compensate_(model, one, removed[one.kind][one.layer], statistics[one.output])
        for kind, layers in removed.items():
            _REMOVE[kind](model, layers, optimizers=trainer.optimizers, technique=self._technique)

    def remaining(self, model: "PreTrainedModel") -> str:
        """Such as ``6 of 12 heads and 96 of 192 neurons``."""
        parts = []
        for kind in self._minimums:
            before = self._dense.counts[kind] if self._dense else 0
            parts.append(f"{sum(u.count for u in units_of(model, kind)):,} of {before:,} {kind}")
        return " and ".join(parts)

    def log(self, trainer: L.Trainer, model: "PreTrainedModel", step: int) -> None:
        """Log the units of each layer."""
        log_remaining(trainer, model, list(self._minimums), step)

    def state_dict(self) -> dict[str, Any]:
        """Size of the dense model, as plain data."""
        return {"dense": None if self._dense is None else vars(self._dense)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the size of the dense model."""
        dense = state_dict["dense"]
        self._dense = None if dense is None else _Dense(**dense)

    def _units(self, model: "PreTrainedModel") -> list[Units]:
        return [one for kind in self._minimums for one in units_of(model, kind)]
