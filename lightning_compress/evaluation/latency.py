"""How fast: several candidates timed in turn in one process, so that drift hits them alike."""

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
    synchronize,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_REPEATS = 3
"""Every call is timed at least this often."""

_LOOKING = 0.1
"""Share of the time that goes into finding out how many calls there is time for."""

_CLOCK_STEP = 1e-9

REST = 0.05
"""Seconds in which the idle threads of another process have fallen asleep."""


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time of one batch, in milliseconds."""

    batch_size: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Throughput:
    """Examples per second; ``iqr`` is the interquartile range over rounds by the median."""

    batch_size: int
    threads: int
    samples_per_second: float
    iqr: float


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
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

    A round is all calls of the first candidate, then all of the second, and so on; the next round
    begins with the second. An untimed round warms up. Where :data:`MIN_REPEATS` rounds of all calls
    would take longer than ``seconds``, fewer calls are made, evenly chosen; one at least.

    Args:
        candidates: the same number of calls for each, in the same order (by length of the input,
            so that a choice of them stands for all).
        seconds: time to spend on each candidate, without warming up.
        clock: makes a call and gives the seconds that it took.
        rest: seconds before each candidate's turn; :data:`REST` where they are of several
            processes, whose idle threads would else be charged to the next.

    Returns:
        For each candidate the seconds of its calls, [rounds, calls].
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
    return [torch.tensor(rounds, dtype=torch.float64) for rounds in times]


def _affordable(
    candidates: Sequence[Sequence[Callable[[], object]]],
    seconds: float,
    clock: Callable[[Callable[[], Any]], float],
) -> list[list[Callable[[], object]]]:
    """So many of the calls that the slowest candidate gets through its rounds in time.

    The middle one is among them if they are an odd number, and is run here in any case.
    """
    typical = [
        _mean_seconds(calls[len(calls) // 2], seconds * _LOOKING, clock) for calls in candidates
    ]
    count = max(1, int(seconds / (MIN_REPEATS * max(*typical, _CLOCK_STEP))))
    return [spread_evenly(calls, count) for calls in candidates]


def _mean_seconds(
    call: Callable[[], object], seconds: float, clock: Callable[[Callable[[], Any]], float]
) -> float:
    """How long a call takes, over about so many seconds; a busy machine makes one call deceive."""
    start, taken = time.perf_counter(), [clock(call)]
    while time.perf_counter() - start < seconds:
        taken.append(clock(call))
    return sum(taken) / len(taken)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle would be charged to whoever is running."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def latency_of(times: Tensor, batch_size: int) -> Latency:
    """Percentiles over all calls and rounds of ``times`` [rounds, calls] in seconds."""
    p50, p95, p99 = (1e3 * times.quantile(times.new_tensor([0.5, 0.95, 0.99]))).tolist()
    return Latency(batch_size, p50, p95, p99)


def throughput_of(times: Tensor, batch_size: int, threads: int) -> Throughput:
    """The rate at which ``times`` [rounds, calls] in seconds, in the median of each call, add up.

    Its spread is that of the rates of the rounds.
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

    The model is used where it is and as it is, with the threads that torch is set to; its
    training flag is restored.

    Args:
        model: a Hugging Face model.
        batch: ``input_ids`` [B, S] and what else the model takes.
        seconds: how long to go on after warming up.
    """
    inputs, forward, device = inputs_for(model, batch), logits_by(model, model), device_of(model)

    def call() -> None:
        forward(**inputs)
        synchronize(device)

    with evaluating(model):
        times = interleaved_times([[call]], seconds=seconds)[0]
    return latency_of(times, len(batch["input_ids"]))
