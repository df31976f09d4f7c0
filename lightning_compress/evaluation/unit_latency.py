"""What a head and a neuron cost in time, on this machine."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_compress.evaluation.forward import (
    device_of,
    evaluating,
    inputs_for,
    logits_by,
    synchronize,
)
from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.models import remove_heads_, remove_layers_, remove_neurons_, units_of
from lightning_compress.models.layer_shapes import layer_count
from lightning_compress.models.structure import UnitKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = 5
_REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


def seconds_per_unit(
    model: "PreTrainedModel",
    batch: Mapping[str, Tensor],
    kinds: Sequence[UnitKind],
    *,
    seconds: float = 1.0,
) -> dict[UnitKind, float]:
    """Measure what one unit adds to the time of a batch: the slope of time over units.

    One layer is timed with the units it has and with evenly fewer, all in turn. What does not
    depend on the number of units is not in the slope. (A model whose layers are one block is timed
    whole.)

    Args:
        model: a transformer of a known family; it is not changed.
        batch: ``input_ids`` [B, S] and what else the model takes.
        kinds: of units.
        seconds: how long each size is timed.

    Returns:
        Seconds by kind; never negative.
    """
    one_layer = copy.deepcopy(model)
    if (layer_count(one_layer) or 1) > 1:
        remove_layers_(one_layer, range(1, layer_count(one_layer) or 1))
    inputs, device = inputs_for(model, batch), device_of(model)
    slopes: dict[UnitKind, float] = {}
    for kind in kinds:
        count = units_of(one_layer, kind)[0].count
        sizes = sorted({max(1, count * step // _SIZES) for step in range(1, _SIZES + 1)})
        models = [copy.deepcopy(one_layer) for _ in sizes]
        for smaller, size in zip(models, sizes, strict=True):
            _REMOVE[kind](smaller, {0: range(size, count)})

        def timed(smaller: "PreTrainedModel") -> None:
            logits_by(smaller, smaller)(**inputs)
            synchronize(device)

        calls = [[lambda smaller=smaller: timed(smaller)] for smaller in models]
        with evaluating(*models):
            times = interleaved_times(calls, seconds=seconds)
        medians = [float(one.median()) for one in times]
        slopes[kind] = max(0.0, float(np.polyfit(sizes, medians, 1)[0])) if len(sizes) > 1 else 0.0
    return slopes
