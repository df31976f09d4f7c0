"""What is far slower than the baseline is cut short; all times are made up."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import Example
from lightning_compress.evaluation.report.notes import notes_of
from lightning_compress.evaluation.report.report import Report, Row
from lightning_compress.evaluation.runtimes.eager import EagerRuntime, TorchModel
from lightning_compress.evaluation.runtimes.runtime import PreparedModel
from lightning_compress.evaluation.runtimes.subprocess_worker import WorkerError
from lightning_compress.evaluation.runtimes.table import RUNTIMES
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.types import Batch

Seconds = dict[tuple[str, str], Sequence[float]]


class Timed(TorchModel):
    """Takes as long as it is told to: the seconds of its runs, the last one for all others."""

    def __init__(self, model: PreTrainedModel, seconds: Sequence[float]) -> None:
        super().__init__(model, model)
        self.left, self.runs = list(seconds), 0

    def __call__(self, loaded: dict[str, torch.Tensor]) -> torch.Tensor:
        self.runs += 1
        return super().__call__(loaded)

    def seconds(self, loaded: dict[str, torch.Tensor]) -> float:
        self.runs += 1
        if not self.left:
            raise WorkerError("its process died")
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.fixture
def measured(
    tiny_bert: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Report, dict[tuple[str, str], Timed]]]:
    """Benchmark a model whose rows take the seconds given by runtime and precision."""

    def run(seconds: Seconds, **options: Any) -> tuple[Report, dict[tuple[str, str], Timed]]:
        made: dict[tuple[str, str], Timed] = {}

        def runtime(name: str) -> Any:
            class Fake(EagerRuntime):
                def prepare(
                    self,
                    model: PreTrainedModel,
                    precision: str,
                    device: str,
                    warmup_batches: Sequence[Batch],
                ) -> PreparedModel:
                    row = name, precision
                    made[row] = Timed(copy.deepcopy(model), seconds[row])
                    return made[row]

            Fake.name = name
            return Fake

        names = list(dict.fromkeys(name for name, _ in seconds))
        for name in names:
            monkeypatch.setitem(RUNTIMES, name, runtime(name))
        settings = BenchmarkSettings(**{
            "runtimes": names, "devices": ["cpu"], "seconds": 0.001, "batch_sizes": [4],
            "latency_examples": 2,
            "precisions": list(dict.fromkeys(precision for _, precision in seconds)), **options,
        })  # fmt: skip
        examples = [Example({"input_ids": torch.ones(5, dtype=torch.int64)}, torch.tensor(1), None)]
        report = benchmark(
            {"dense": tiny_bert}, examples * 8, settings, run_name="x", task_name="toy"
        )
        return report, made

    return run


def is_complete(row: Row) -> bool:
    return (
        row.failure is None
        and row.throughput is not None
        and row.latency is not None
        and row.metrics["accuracy"] is not None
        and row.measured["size_bytes"] > 0
    )


def test_a_slow_row_is_cut_short_and_the_others_are_complete(measured: Any) -> None:
    report, made = measured(
        {("eager", "fp32"): [0.08], ("slow", "fp32"): [2.66], ("other", "fp32"): [0.79]},
        threads=[1, 2],
    )
    eager, slow, other = report.rows
    assert is_complete(eager)
    assert is_complete(other)
    reason = "cut short: a batch took 33 times as long as dense eager fp32 (2.66 s against 0.08 s)"
    assert slow.failure == reason
    assert [str(note) for note in notes_of(report, slow)] == [reason]
    assert slow.metrics == {"accuracy": None, "f1": None, "mcc": None}
    assert (slow.measured, slow.latency, slow.rates) == ({}, None, [])
    assert made["slow", "fp32"].runs == 2  # neither tested nor timed, with any number of threads
    assert {rate.threads for rate in other.rates} == {1, 2}
    assert any("more than 10 times as long" in line for line in report.protocol)


def test_the_baseline_is_the_reference_wherever_it_is_in_the_report(measured: Any) -> None:
    report, _ = measured({
        ("slow", "int8-dynamic"): [2.0], ("slow", "fp32"): [0.1],
        ("eager", "int8-dynamic"): [0.1], ("eager", "fp32"): [0.1],
    })  # fmt: skip
    assert [(row.runtime, row.precision) for row in report.rows] == [
        ("slow", "int8-dynamic"), ("slow", "fp32"), ("eager", "int8-dynamic"), ("eager", "fp32"),
    ]  # fmt: skip
    slow, *others = report.rows
    assert "20 times as long as dense eager fp32" in (slow.failure or "")
    assert all(is_complete(row) for row in others)


def test_the_baseline_is_never_cut_short(measured: Any) -> None:
    report, _ = measured({("eager", "fp32"): [60.0], ("other", "fp32"): [0.001]})
    assert all(is_complete(row) for row in report.rows)


def test_without_the_reference_the_first_row_is_the_baseline(measured: Any) -> None:
    report, _ = measured(
        {("first", "fp32"): [2.0], ("second", "fp32"): [19.0], ("third", "fp32"): [21.0]}
    )
    first, second, third = report.rows
    assert is_complete(first)
    assert is_complete(second)
    assert "dense first fp32 (21 s against 2 s)" in (third.failure or "")


@pytest.mark.parametrize(
    ("seconds", "cut"),
    [
        ([0.05], False),  # 50 times as long, which costs next to no time
        ([0.052], True),
        ([9.0, 0.002], False),  # interrupted once
    ],
)
def test_what_costs_little_time_is_measured(
    measured: Any, seconds: Sequence[float], cut: bool
) -> None:
    report, _ = measured({("eager", "fp32"): [0.001], ("other", "fp32"): seconds})
    assert is_complete(report.rows[1]) is not cut


def test_a_process_that_dies_in_the_trial_is_a_note(measured: Any) -> None:
    report, _ = measured({
        ("eager", "fp32"): [0.001], ("other", "fp32"): [], ("third", "fp32"): [0.001],
    })  # fmt: skip
    eager, other, third = report.rows
    assert other.failure == "other: its process died"
    assert is_complete(eager)
    assert is_complete(third)


def test_what_does_not_get_ready_in_time_is_a_note(tiny_bert: PreTrainedModel) -> None:
    runs: list[float] = []

    def slowly(*_: object) -> None:
        runs.append(1.0)
        time.sleep(0.06)

    settings = BenchmarkSettings(
        runtimes=["eager"], precisions=["fp32"], devices=["cpu"], batch_sizes=[4], timeout_s=0.05
    )
    example = Example({"input_ids": torch.ones(5, dtype=torch.int64)}, torch.tensor(1), None)
    hook = tiny_bert.register_forward_hook(slowly)
    try:
        report = benchmark(
            {"dense": tiny_bert}, [example] * 8, settings, run_name="x", task_name="toy"
        )
    finally:
        hook.remove()
    assert report.rows[0].failure == (
        "does not run in fp32: it took longer than 0.05 s (timeout_s)"
    )
    assert len(runs) == 2  # one to count multiplications
