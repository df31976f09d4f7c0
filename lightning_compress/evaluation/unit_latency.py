"""What a head and a neuron cost in time, on this machine."""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.models import remove_heads_, remove_neurons_, structure_of, units_of
from lightning_compress.models.families import UnitKind
from lightning_compress.models.forward import (
    device_of,
    evaluating,
    inputs_for,
    logits_by,
    synchronize,
)
from lightning_compress.models.layers import layer_count, remove_layers_
from lightning_compress.models.structure import Units, inputs_of, linear_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = 5
_REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


def seconds_per_unit(
    model: "PreTrainedModel",
    batch: Mapping[str, Tensor],
    units: Iterable[Units],
    *,
    seconds: float = 1.0,
) -> dict[str, float]:
    """Measure what one unit adds to the time of a batch: the slope of time over units.

    A layer is timed with the units it has and with evenly fewer, all in turn. What does not depend
    on the number of units is not in the slope. One layer stands for all that are as wide. (A model
    whose layers are one block is timed whole.)

    Args:
        model: a transformer of a known family; it is not changed.
        batch: ``input_ids`` [B, S] and what else the model takes.
        units: the heads and neurons of its layers.
        seconds: how long each size is timed.

    Returns:
        Seconds by name of the projection (``Units.output``); never negative.
    """
    found: dict[tuple[UnitKind, int], float] = {}
    slopes: dict[str, float] = {}
    for one in units:
        like = one.kind, inputs_of(linear_at(model, one.inputs[0]))
        if like not in found:
            found[like] = _slope(_alone(model, one.output), batch, one.kind, seconds)
        slopes[one.output] = found[like]
    return slopes


def _alone(model: "PreTrainedModel", projection: str) -> "PreTrainedModel":
    """A copy of which only the layer with that projection is left."""
    alone = copy.deepcopy(model)
    if layer_count(alone) is not None:
        layers = structure_of(alone).layers
        others = [i for i, name in enumerate(layers) if not projection.startswith(f"{name}.")]
        if others:
            remove_layers_(alone, others)
    return alone


def _slope(
    layer: "PreTrainedModel", batch: Mapping[str, Tensor], kind: UnitKind, seconds: float
) -> float:
    """What a unit of the first block adds."""
    inputs, device = inputs_for(layer, batch), device_of(layer)
    count = units_of(layer, kind)[0].count
    sizes = sorted({max(1, count * step // _SIZES) for step in range(1, _SIZES + 1)})
    if len(sizes) == 1:
        return 0.0
    models = [copy.deepcopy(layer) for _ in sizes]
    for smaller, size in zip(models, sizes, strict=True):
        _REMOVE[kind](smaller, {0: range(size, count)})

    def timed(smaller: "PreTrainedModel") -> None:
        logits_by(smaller, smaller)(**inputs)
        synchronize(device)

    calls = [[lambda smaller=smaller: timed(smaller)] for smaller in models]
    with evaluating(*models):
        times = interleaved_times(calls, seconds=seconds)
    medians = [float(one.median()) for one in times]
    return max(0.0, float(np.polyfit(sizes, medians, 1)[0]))
