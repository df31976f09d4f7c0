"""Who is timed when, and what is made of it. No test looks at how fast something is."""

import gc
import time
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress import measure_latency
from lightning_compress.evaluation.latency import (
    interleaved_times,
    latency_of,
    throughput_of,
)


class Clock:
    """Time passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []

    def perf_counter(self) -> float:
        return self.now

    def worker(self, name: str, number: int, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds
            self.log.append((name, number))

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    return clock


def rounds_of(log: list[tuple[str, int]], names: str, calls: int) -> list[list[tuple[str, int]]]:
    """The end of a log cut into rounds."""
    size = len(names) * calls
    assert len(log) % size == 0
    return [log[start : start + size] for start in range(0, len(log), size)]


def test_candidates_take_turns_and_begin_in_turn(clock: Clock) -> None:
    calls = [[clock.worker(name, n, 0.01) for n in range(2)] for name in "ab"]
    times = interleaved_times(calls, seconds=0.1)
    calibration_calls = sum(number == 1 for _, number in clock.log) - sum(
        n == 0 for _, n in clock.log
    )
    rounds = rounds_of(clock.log[calibration_calls:], "ab", 2)
    first, second = [("a", 0), ("a", 1)], [("b", 0), ("b", 1)]
    assert rounds[0] == first + second  # the warm-up
    assert rounds[1:5] == [first + second, second + first] * 2
    assert [one.shape for one in times] == [(len(rounds) - 1, 2)] * 2


def test_times_are_those_of_each_call_and_last_as_long_as_wanted(clock: Clock) -> None:
    calls = [[clock.worker("a", n, 0.001 * (n + 1)) for n in range(3)]]
    (times,) = interleaved_times(calls, seconds=1.0)
    expected = torch.tensor([0.001, 0.002, 0.003], dtype=torch.float64)
    assert torch.allclose(times, expected.expand_as(times))
    assert times.sum() == pytest.approx(1.0, abs=0.01)


def test_a_slow_candidate_gets_fewer_calls_and_so_do_all(clock: Clock) -> None:
    slow = [clock.worker("slow", n, 0.1) for n in range(10)]
    quick = [clock.worker("quick", n, 0.001) for n in range(10)]
    both = interleaved_times([slow, quick], seconds=0.62)
    assert [times.shape[1] for times in both] == [2, 2]
    assert {n for name, n in clock.log[-6:] if name == "quick"} == {2, 7}  # evenly chosen
    (times,) = interleaved_times([[clock.worker("slower", 0, 5.0)]], seconds=0.1)
    assert times.shape == (3, 1)


def test_garbage_is_not_collected_meanwhile_and_is_afterwards(clock: Clock) -> None:
    seen: list[bool] = []

    def work() -> None:
        seen.append(gc.isenabled())
        clock.now += 1.0

    interleaved_times([[work]], seconds=1.0)
    assert seen[-3:] == [False] * 3
    assert gc.isenabled()


def test_percentiles_and_rates() -> None:
    times = torch.arange(1, 101, dtype=torch.float64).reshape(4, 25) / 1000
    found = latency_of(times, batch_size=1)
    assert found.p50 == pytest.approx(50.5)
    assert found.p95 == pytest.approx(95.05)
    assert found.p99 == pytest.approx(99.01)
    rounds = torch.tensor([[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    rate = throughput_of(rounds, batch_size=8, threads=2)  # 16, 8 and 4 examples a second
    assert (rate.batch_size, rate.threads) == (8, 2)
    assert rate.samples_per_second == pytest.approx(8)
    assert rate.iqr == pytest.approx((12 - 6) / 8)


def test_measure_latency_restores_the_training_flag(tiny_bert: PreTrainedModel) -> None:
    tiny_bert.train()
    ids = torch.ones(3, 7, dtype=torch.int64)
    found = measure_latency(tiny_bert, {"input_ids": ids}, seconds=0.02)
    assert tiny_bert.training
    assert found.batch_size == 3
    assert 0 < found.p50 <= found.p95 <= found.p99


def test_all_rest_before_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("time.sleep", rests.append)
    candidates = [[lambda: None], [lambda: None]]
    times = interleaved_times(candidates, seconds=1e-6, rest=0.25)
    assert rests == [0.25] * (2 * len(times[0]))
