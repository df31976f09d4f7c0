"""Structured pruning without training: select, rearrange, remove, reconstruct.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656. Differences: the gradients are those of single examples, units
are removed instead of masked, and all outgoing weights are fitted instead of one factor per unit.

The importance is the Fisher information by definition of the method, so there is no other score to
choose: selection uses its diagonal, rearrangement the rest, both from the same gradients.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.families import UnitKind
from lightning_compress.models.removal import remove_heads_, remove_neurons_
from lightning_compress.models.structure import Units, units_of
from lightning_compress.pruning.gate_gradients import gate_gradients
from lightning_compress.pruning.reconstruction import (
    absorb_means_,
    input_statistics,
    reconstruct_projections_,
)
from lightning_compress.pruning.selection import LayerMinimum, rearrange, select_units
from lightning_compress.types import Batch

TECHNIQUE = "post_training_pruning"


def prune_post_training_(
    model: nn.Module,
    calibration: Calibration,
    logits_of: Callable[[nn.Module, Batch], Tensor],
    costs: Mapping[str, float],
    max_cost: float,
    minimums: Mapping[UnitKind, LayerMinimum],
    *,
    on_progress: Callable[[str], None] = lambda what: None,
) -> None:
    """Remove heads and neurons until the rest fits the budget, in place, without training.

    Args:
        model: a trained transformer of a known family, in eval mode.
        calibration: the examples, about a thousand.
        logits_of: gives the logits of a model for a batch.
        costs: of one head or neuron, by name of the projection (``Units.output``).
        max_cost: cost of all kept units together, at most.
        minimums: which kinds of units are removed, and what every layer keeps of each.
        on_progress: called after each part with the name of what was done.

    Raises:
        InputError: the minimums cost more than the budget; the model is then unchanged.
    """
    units = [one for kind in minimums for one in units_of(model, kind)]
    removed = _select(model, units, calibration, costs, max_cost, minimums)
    on_progress("selected")
    dense = copy.deepcopy(model)
    statistics = input_statistics(model, units, calibration)
    for one in units:
        if one.layer in removed[one.kind]:
            absorb_means_(model, one, removed[one.kind][one.layer], statistics[one.output])
    remove_heads_(model, removed.get("heads", {}), technique=TECHNIQUE)
    remove_neurons_(model, removed.get("neurons", {}), technique=TECHNIQUE)
    on_progress("removed")
    reconstruct_projections_(
        model,
        dense,
        calibration,
        lambda batch: logits_of(dense, batch),
        on_progress=lambda: on_progress("reconstructed"),
    )


def _select(
    model: nn.Module,
    units: list[Units],
    calibration: Calibration,
    costs: Mapping[str, float],
    max_cost: float,
    minimums: Mapping[UnitKind, LayerMinimum],
) -> dict[UnitKind, dict[int, list[int]]]:
    batches = list(gate_gradients(model, units, calibration))
    gradients = {one.output: torch.cat([batch[one.output] for batch in batches]) for one in units}
    fisher = {name: value.double().square().mean(0).cpu() for name, value in gradients.items()}
    removed = select_units(units, fisher, costs, max_cost, minimums)
    return {
        kind: {
            one.layer: rearrange(gradients[one.output], removed[kind][one.layer])
            for one in units
            if one.kind == kind and one.layer in removed[kind]
        }
        for kind in removed
    }
