"""What the callbacks that remove heads and neurons have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.families import UnitKind
from lightning_compress.models.structure import Units
from lightning_compress.pruning.importance import UNIT_SCORES, UnitScore
from lightning_compress.pruning.reconstruction import (
    absorb_means_,
    input_statistics,
    least_squares_refit_,
)
from lightning_compress.pruning.selection import Budget, LayerMinimum, select_units, total_cost

from .figures import log_remaining, log_scores
from .round_pruning import RoundPruning
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


@dataclass(frozen=True)
class _Before:
    """What there was before the first round; ``cost`` for texts of so many ``tokens``."""

    tokens: float
    cost: float
    counts: dict[UnitKind, int]


class UnitPruning(RoundPruning):
    """Remove heads, neurons or both from all layers together.

    Args:
        budget: how much is removed.
        minimums: which kinds of units are removed, and what every layer keeps of each.
        technique: the report's name for it.
        score: by which the least important go: ``fisher`` or ``taylor`` (the loss's dependence on
            each, squared or absolute), ``activation`` (how much what they say varies, and how far
            it reaches), ``magnitude`` (their weights) or ``random`` (what the others have to beat).
        refit: fit the outgoing weights of what remains, by least squares, to what all said before.
            Otherwise the mean of what is removed goes into the bias.
        options: of :class:`RoundPruning`.
    """

    def __init__(
        self,
        *,
        budget: Budget,
        minimums: Mapping[UnitKind, LayerMinimum],
        technique: str,
        score: UnitScore = "fisher",
        refit: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._budget = budget
        self._minimums = minimums
        self._score = score
        self._refit = refit
        self._technique = technique
        # For the page in TensorBoard.
        self.charts = {f"remaining {kind}": f"^{kind}/layer" for kind in minimums}
        self._before: _Before | None = None

    def state_dict(self) -> dict[str, Any]:
        """Progress, and what there was to begin with."""
        before = None if self._before is None else vars(self._before)
        return {**super().state_dict(), "before": before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring progress back."""
        super().load_state_dict(state_dict)
        before = state_dict["before"]
        self._before = None if before is None else _Before(**before)

    def _check(self, model: "PreTrainedModel") -> None:
        if self._done:
            return
        units = self._units(model)
        nothing = {one.output: torch.zeros(one.count) for one in units}
        costs = self._budget.costs(model, units, tokens=1)
        budget = self._budget.remaining(total_cost(units, costs), 1.0)
        select_units(units, nothing, costs, budget, self._minimums)

    def _prune(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
    ) -> None:
        units = self._units(model)
        tokens = self._before.tokens if self._before else calibration.tokens()
        costs = self._budget.costs(model, units, tokens)
        if self._before is None:
            counts = {kind: sum(u.count for u in units_of(model, kind)) for kind in self._minimums}
            self._before = _Before(tokens, total_cost(units, costs), counts)
        scores = UNIT_SCORES[self._score](model, units, calibration)
        scores = {name: score.cpu() for name, score in scores.items()}
        budget = self._budget.remaining(self._before.cost, progress)
        removed = select_units(units, scores, costs, budget, self._minimums)
        require_agreement(trainer, digest_of(removed), "which heads and neurons to remove")
        log_scores(trainer, units, scores, self._step)
        statistics = input_statistics(model, units, calibration, pairs=self._refit)
        compensate_ = least_squares_refit_ if self._refit else absorb_means_
        for one in units:
            if one.layer in removed[one.kind]:
                compensate_(model, one, removed[one.kind][one.layer], statistics[one.output])
        for kind, layers in removed.items():
            _REMOVE[kind](model, layers, optimizers=trainer.optimizers, technique=self._technique)

    def _remaining(self, model: "PreTrainedModel") -> str:
        parts = []
        for kind in self._minimums:
            before = self._before.counts[kind] if self._before else 0
            parts.append(f"{sum(u.count for u in units_of(model, kind)):,} of {before:,} {kind}")
        return " and ".join(parts)

    def _log(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        log_remaining(trainer, model, list(self._minimums), max(self._step, 0))

    def _units(self, model: "PreTrainedModel") -> list[Units]:
        return [one for kind in self._minimums for one in units_of(model, kind)]
