"""Structured pruning without training: search, rearrange, remove, match.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656. Other than there, the gradients are those of single examples, the
units leave the model, and all outgoing weights are fitted instead of one factor a unit.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Batch, Calibration
from lightning_compress.models.families import UnitKind
from lightning_compress.models.removal import remove_heads_, remove_neurons_
from lightning_compress.models.structure import Units, units_of
from lightning_compress.pruning.gate_gradients import gate_gradients
from lightning_compress.pruning.reconstruction import (
    fold_means_,
    input_statistics,
    match_projections_,
)
from lightning_compress.pruning.selection import Limits, choose_units, rearranged

TECHNIQUE = "post_training_pruning"


def prune_post_training_(
    model: nn.Module,
    calibration: Calibration,
    logits_of: Callable[[nn.Module, Batch], Tensor],
    costs: Mapping[str, float],
    budget: float,
    limits: Mapping[UnitKind, Limits],
    *,
    on_progress: Callable[[str], None] = lambda what: None,
) -> None:
    """Remove heads and neurons until the rest is in the budget, in place, without training.

    Args:
        model: a transformer of a known family, in eval mode, trained to the end.
        calibration: the examples, a thousand or so.
        logits_of: what a model says of a batch.
        costs: of one head or neuron, by name of the projection (``Units.output``).
        budget: what all of them may cost in the end.
        limits: which kinds of units go, and what a layer keeps of each.
        on_progress: called with what has been done, after each part.

    Raises:
        InputError: the limits keep more than the budget allows; the model is then unchanged.
    """
    units = [one for kind in limits for one in units_of(model, kind)]
    gone = _chosen(model, units, calibration, costs, budget, limits)
    on_progress("chosen")
    dense = copy.deepcopy(model)
    seen = input_statistics(model, units, calibration)
    for one in units:
        if one.layer in gone[one.kind]:
            fold_means_(model, one, gone[one.kind][one.layer], seen[one.output])
    remove_heads_(model, gone.get("heads", {}), technique=TECHNIQUE)
    remove_neurons_(model, gone.get("neurons", {}), technique=TECHNIQUE)
    on_progress("removed")
    match_projections_(
        model,
        dense,
        calibration,
        lambda batch: logits_of(dense, batch),
        on_progress=lambda: on_progress("matched"),
    )


def _chosen(
    model: nn.Module,
    units: list[Units],
    calibration: Calibration,
    costs: Mapping[str, float],
    budget: float,
    limits: Mapping[UnitKind, Limits],
) -> dict[UnitKind, dict[int, list[int]]]:
    found = list(gate_gradients(model, units, calibration))
    gradients = {one.output: torch.cat([batch[one.output] for batch in found]) for one in units}
    scores = {name: value.double().square().mean(0).cpu() for name, value in gradients.items()}
    gone = choose_units(units, scores, costs, budget, limits)
    return {
        kind: {
            one.layer: rearranged(gradients[one.output], gone[kind][one.layer])
            for one in units
            if one.kind == kind and one.layer in gone[kind]
        }
        for kind in gone
    }
