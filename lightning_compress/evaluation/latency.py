"""Latency and throughput of models, and the time that one head or neuron takes.

Candidates are timed in turn, so that drift of the machine affects all of them alike.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.evaluation.examples import spread_evenly
from lightning_compress.models.forward import (
    device_of,
    evaluating,
    inputs_for,
    logits_by,
    outputs_by,
    require_runs,
    synchronize,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lightning_compress.models import remove_heads_, remove_neurons_, structure_of, units_of
from lightning_compress.models.families import UnitKind
from lightning_compress.models.layers import layer_count, remove_layers_
from lightning_compress.models.structure import Units, inputs_of, linear_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MIN_REPEATS = 3
"""Smallest number of timed repetitions of each call."""


_PROBE_FRACTION = 0.1
"""Fraction of the time spent on estimating how many calls fit into it."""


_CLOCK_STEP = 1e-9


REST = 0.05
"""Seconds after which idle threads of another process no longer spin."""


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time of one batch, in milliseconds."""

    batch_size: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Throughput:
    """Examples per second; ``iqr`` is the repetitions' interquartile range over their median."""

    batch_size: int
    threads: int
    samples_per_second: float
    iqr: float


def seconds_of(call: Callable[[], object]) -> float:
    """Make a call and return the seconds it took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved_times(
    candidates: Sequence[Sequence[Callable[[], object]]],
    *,
    seconds: float,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
    rest: float = 0.0,
) -> list[Tensor]:
    """Time the calls of several candidates in turn.

    One repetition is all calls of the first candidate, then all of the second, and so on; the next
    repetition starts with the second candidate. The first repetition warms up and is not timed.
    Where :data:`MIN_REPEATS` repetitions of all calls would take longer than ``seconds``, fewer
    calls are made, evenly chosen, at least one.

    Args:
        candidates: calls of each, the same number in the same order, sorted by input length.
        seconds: time to spend on each candidate, without warm-up.
        clock: makes a call and returns the seconds it took.
        rest: seconds to wait before each candidate's turn; :data:`REST` for candidates in several
            processes, whose idle threads would slow down the next one.

    Returns:
        For each candidate the seconds of its calls, [repetitions, calls].
    """
    chosen = _affordable(candidates, seconds, clock)
    for calls in chosen:
        if len(calls) > 1:  # the only one has just been run
            for call in calls:
                call()
    times: list[list[list[float]]] = [[] for _ in chosen]
    with _no_garbage_collection():
        start, done = time.perf_counter(), 0
        while done < MIN_REPEATS or time.perf_counter() - start < seconds * len(chosen):
            for place in range(len(chosen)):
                turn = (done + place) % len(chosen)
                time.sleep(rest)
                times[turn].append([clock(call) for call in chosen[turn]])
            done += 1
    return [torch.tensor(repeats, dtype=torch.float64) for repeats in times]


def _affordable(
    candidates: Sequence[Sequence[Callable[[], object]]],
    seconds: float,
    clock: Callable[[Callable[[], Any]], float],
) -> list[list[Callable[[], object]]]:
    """As many calls as the slowest candidate can repeat often enough in the given time.

    The middle call is among them if their number is odd, and is run in any case.
    """
    typical = [
        _mean_seconds(calls[len(calls) // 2], seconds * _PROBE_FRACTION, clock)
        for calls in candidates
    ]
    count = max(1, int(seconds / (MIN_REPEATS * max(*typical, _CLOCK_STEP))))
    return [spread_evenly(calls, count) for calls in candidates]


def _mean_seconds(
    call: Callable[[], object], seconds: float, clock: Callable[[Callable[[], Any]], float]
) -> float:
    """Mean seconds of a call, measured for ``seconds``: a single call varies on a busy machine."""
    start, taken = time.perf_counter(), [clock(call)]
    while time.perf_counter() - start < seconds:
        taken.append(clock(call))
    return sum(taken) / len(taken)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which would count as time of the running call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def latency_of(times: Tensor, batch_size: int) -> Latency:
    """Percentiles over all of ``times`` [repetitions, calls] in seconds."""
    p50, p95, p99 = (1e3 * times.quantile(times.new_tensor([0.5, 0.95, 0.99]))).tolist()
    return Latency(batch_size, p50, p95, p99)


def throughput_of(times: Tensor, batch_size: int, threads: int) -> Throughput:
    """The rate of all calls, each with its median of ``times`` [repetitions, calls] in seconds.

    The IQR is that of the rates of the single repetitions.
    """
    samples = batch_size * times.shape[1]
    rate = samples / float(times.quantile(0.5, dim=0).sum())
    rates = samples / times.sum(1)
    low, middle, high = rates.quantile(rates.new_tensor([0.25, 0.5, 0.75])).tolist()
    return Throughput(batch_size, threads, rate, (high - low) / middle)


def measure_latency(
    model: "PreTrainedModel", batch: Mapping[str, Tensor], *, seconds: float = 1.0
) -> Latency:
    """Time forward passes of a model on one batch.

    The model is not moved or changed; torch's number of threads is used, and the model's training
    flag is restored.

    Args:
        model: any Hugging Face model, with or without a head.
        batch: ``input_ids`` [B, S], ``pixel_values`` or what else the model takes.
        seconds: time to spend after warm-up.

    Raises:
        InputError: the batch lacks inputs of the model.
    """
    require_runs(model, batch)
    inputs, forward, device = inputs_for(model, batch), outputs_by(model, model), device_of(model)

    def call() -> None:
        forward(**inputs)
        synchronize(device)

    with evaluating(model):
        times = interleaved_times([[call]], seconds=seconds)[0]
    return latency_of(times, len(next(iter(inputs.values()))))


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
