"""The protocol on tiny models; no test looks at how fast something is."""

import copy
import dataclasses
import json
import math
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lightning_compress.errors import InputError
from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import Example, examples_of
from lightning_compress.evaluation.report.notes import notes_of
from lightning_compress.evaluation.report.rendering import as_json, write_report
from lightning_compress.evaluation.report.report import MASKS_ONLY, Report, fastest
from lightning_compress.evaluation.runtimes.eager import EagerRuntime
from lightning_compress.evaluation.runtimes.runtime import PreparedModel, RuntimeOptions
from lightning_compress.evaluation.runtimes.table import RUNTIMES
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.models import set_masks_
from lightning_compress.tasks.language_modeling import next_token_labels
from lightning_compress.types import Batch

QUICK = BenchmarkSettings(
    runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001, batch_sizes=[4]
)
measured = partial(benchmark, run_name="test/version_0", task_name="toy")


@pytest.fixture
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 40, (21,), generator=generator).tolist()
    return [
        Example(
            {"input_ids": torch.randint(1, 100, (length,), generator=generator)},
            torch.tensor(number % 2),
            number,
        )
        for number, length in enumerate(lengths)
    ]


def pruned(model: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(model)
    weights = {n: p for n, p in model.named_parameters() if "encoder" in n and p.dim() == 2}
    set_masks_(model, {n: p.abs() > p.abs().median() for n, p in weights.items()})
    return model


@torch.no_grad()
def slow_accuracy(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    hits = 0
    for example in examples:
        logits = model(input_ids=example.tokens["input_ids"][None]).logits
        hits += int(logits.argmax()) == int(example.labels)  # type: ignore[arg-type]
    return hits / len(examples)


def check_types(row: dict[str, Any]) -> None:
    """Every figure of a measured row is there and plausible."""
    for name in ("parameters", "nonzero_parameters", "macs", "size_bytes", "peak_memory_bytes"):
        assert isinstance(row[name], int), name
        assert row[name] > 0, name
    assert row["latency_ms"]["p50"] <= row["latency_ms"]["p95"] <= row["latency_ms"]["p99"]
    assert row["throughput"]["samples_per_second"] > 0


def test_dense_and_compressed_are_measured_in_every_precision(
    tiny_bert: PreTrainedModel, examples: list[Example]
) -> None:
    models = {"dense": tiny_bert, "compressed": pruned(tiny_bert)}
    tiny_bert.train()
    before = {label: copy.deepcopy(model.state_dict()) for label, model in models.items()}
    settings = BenchmarkSettings(
        runtimes=["eager"], precisions=["fp32", "bf16"], devices=["cpu"], seconds=0.001,
        batch_sizes=[4], threads=[1],
    )  # fmt: skip
    threads = torch.get_num_threads()
    report = measured(models, examples, settings)  # type: ignore[arg-type]
    data = json.loads(json.dumps(as_json(report), allow_nan=False))
    keys = [(row["model"], row["precision"]) for row in data["rows"]]
    assert keys == [
        ("dense", "fp32"), ("compressed", "fp32"), ("dense", "bf16"), ("compressed", "bf16"),
    ]  # fmt: skip
    for row in data["rows"]:
        check_types(row)
    dense, compressed, dense_bf16, _ = data["rows"]
    assert compressed["techniques"] == ["mask_weights"]
    assert compressed["note"] == MASKS_ONLY
    assert dense["techniques"] == []
    assert compressed["nonzero_parameters"] < dense["nonzero_parameters"]
    assert dense_bf16["size_bytes"] < 0.6 * dense["size_bytes"]
    assert dense_bf16["peak_memory_bytes"] < 0.7 * dense["peak_memory_bytes"]
    assert data["run"]["host"]["threads"] == 1
    assert torch.get_num_threads() == threads
    for label, model in models.items():
        assert model.training is (label == "dense")
        for name, value in model.state_dict().items():
            assert value.dtype == before[label][name].dtype
            assert torch.equal(value, before[label][name])


def test_quality_is_that_of_a_slow_loop_whatever_the_batch_size(
    tiny_bert: PreTrainedModel, examples: list[Example]
) -> None:
    expected = slow_accuracy(tiny_bert, examples)
    for batch_size in (1, 4, 32):
        settings = BenchmarkSettings(
            runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001,
            batch_sizes=[batch_size],
        )  # fmt: skip
        report = measured({"dense": tiny_bert}, examples, settings)
        assert report.rows[0].metrics["accuracy"] == pytest.approx(expected)
        assert report.task.examples == 21


def test_a_language_model_is_judged_by_perplexity() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    rows = [torch.randint(1, 50, (length,)) for length in (9, 5, 12)]
    examples = [Example({"input_ids": row}, row, None) for row in rows]
    total, count = 0.0, 0
    for row in rows:
        chances = model(input_ids=row[None]).logits[0].log_softmax(-1)
        for place, token in enumerate(row[1:].tolist()):
            total -= chances[place, token].item()
            count += 1
    report = measured({"dense": model}, examples, QUICK)
    assert report.task.metric == "perplexity"
    found = report.rows[0].metrics["perplexity"]
    assert found == pytest.approx(math.exp(total / count), rel=1e-4)
    assert next_token_labels(rows[0]).shape == rows[0].shape


def test_without_labels_quality_is_unknown_and_the_rest_is_measured(
    tiny_bert: PreTrainedModel,
) -> None:
    examples = examples_of([{"input_ids": torch.ones(5, 6, dtype=torch.int64)}])
    report = measured({"dense": tiny_bert}, examples, QUICK)
    (row,) = report.rows
    assert row.metrics == {"accuracy": None, "f1": None, "mcc": None}
    assert row.throughput is not None
    assert [str(note) for note in notes_of(report, row)] == [
        "accuracy, f1, mcc: there are no labels"
    ]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_row_whose_outputs_are_not_finite_has_failed(
    tiny_bert: PreTrainedModel, examples: list[Example], labelled: bool
) -> None:
    """The sums behind this layer overflow in fp16 and its output is multiplied by zero."""
    layer: Any = tiny_bert.get_submodule("bert.encoder.layer.0")
    with torch.no_grad():
        layer.intermediate.dense.bias[0] = 6e4
        layer.intermediate.dense.weight[0] = 0
        layer.output.dense.weight[:, 0] = 0
        layer.output.dense.weight[0, 0] = 100
    if not labelled:
        examples = [dataclasses.replace(example, labels=None) for example in examples]
    settings = dataclasses.replace(QUICK, precisions=["fp32", "fp16"])
    report = measured({"dense": tiny_bert}, examples, settings)
    fine, failed = report.rows
    assert fine.failure is None
    assert failed.failure is not None
    assert "not finite (NaN or infinite) in fp16, first those of " in failed.failure
    assert "bert.encoder.layer.0.output.dense; fp16 holds" in failed.failure
    assert not failed.metrics or set(failed.metrics.values()) == {None}
    assert failed.throughput is None
    assert not failed.rates
    assert {one.row.precision for one in fastest(report.rows)} == {"fp32"}
    # Some CPUs have no instructions for fp16, which is a second note.
    assert str(next(iter(notes_of(report, failed)))) == failed.failure


def test_rates_are_told_for_every_batch_size_and_number_of_threads(
    tiny_bert: PreTrainedModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int]] = []
    forward = tiny_bert.forward

    def counted(**inputs: torch.Tensor) -> Any:
        ran.append((torch.get_num_threads(), len(inputs["input_ids"])))
        return forward(**inputs)

    before = torch.get_num_threads()
    monkeypatch.setattr(EagerRuntime, "prepare", with_forward(EagerRuntime.prepare, counted))
    settings = BenchmarkSettings(
        runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001,
        batch_sizes=[1, 3, 8], threads=[2, 1, 2],
    )  # fmt: skip
    report = measured({"dense": tiny_bert}, examples, settings)
    (row,) = report.rows
    wanted = [(threads, size) for threads in (2, 1) for size in (1, 3, 8)]
    assert [(rate.threads, rate.batch_size) for rate in row.rates] == wanted
    assert set(wanted) <= set(ran)
    assert row.throughput is row.rate(2, 8)
    assert report.speedup(row) == 1
    assert report.run.host.threads == 2
    assert torch.get_num_threads() == before
    assert [(one["threads"], one["batch_size"]) for one in as_json(report)["fastest"]] == wanted


def test_all_threads_are_those_of_before_also_behind_fewer(
    tiny_bert: PreTrainedModel, examples: list[Example]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings = BenchmarkSettings(
            runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001,
            batch_sizes=[4], threads=[1, 0],
        )  # fmt: skip
        report = measured({"dense": tiny_bert}, examples, settings)
    finally:
        torch.set_num_threads(before)
    assert [rate.threads for rate in report.rows[0].rates] == [1, 1, 2, 2]
    assert report.run.host.threads == 1


def with_forward(prepare: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let what is prepared run another function."""

    def prepared(*arguments: Any) -> Any:
        made = prepare(*arguments)
        made._logits = lambda **inputs: forward(**inputs).logits
        return made

    return prepared


def test_what_cannot_be_compiled_gets_a_row_with_the_reason(
    tiny_bert: PreTrainedModel,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled already
    settings = BenchmarkSettings(precisions=["fp32"], devices=["cpu"], seconds=0.001)
    report = measured({"dense": tiny_bert}, examples, settings)
    eager, compiled = as_json(report)["rows"]
    check_types(eager)
    assert compiled["note"].startswith("torch.compile in fp32 failed: ")
    assert "No working C++ compiler found" in compiled["note"]
    assert compiled["metrics"] == {"accuracy": None, "f1": None, "mcc": None}
    assert compiled["latency_ms"]["p50"] is None
    assert compiled["size_bytes"] is None


def test_what_cannot_be_sent_to_another_process_is_a_row_with_the_reason(
    tiny_bert: PreTrainedModel, examples: list[Example]
) -> None:
    tiny_bert.register_forward_hook(lambda *_: None)
    settings = BenchmarkSettings(
        runtimes=["compile"], precisions=["fp32"], devices=["cpu"], seconds=0.001
    )
    (row,) = measured({"dense": tiny_bert}, examples, settings).rows
    assert "the model cannot be sent to another process: " in (row.failure or "")
    assert "pickle" in (row.failure or "")


class Interrupted(EagerRuntime):
    """Somebody presses Ctrl-C while the second model is prepared."""

    def __init__(self) -> None:
        super().__init__(RuntimeOptions())
        self.prepared = 0

    def prepare(
        self, model: PreTrainedModel, precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        self.prepared += 1
        if self.prepared == 2:
            raise KeyboardInterrupt
        return super().prepare(model, precision, device, warmup_batches)


def test_finished_rows_survive_an_interruption(
    tiny_bert: PreTrainedModel,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    runtime = Interrupted()
    monkeypatch.setitem(RUNTIMES, "eager", lambda options: runtime)
    tiny_bert.train()
    models = {"dense": tiny_bert, "compressed": pruned(tiny_bert)}

    def write(report: Report) -> None:
        write_report(report, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        measured(models, examples, QUICK, on_update=write)  # type: ignore[arg-type]
    told = json.loads((tmp_path / "report.json").read_text())
    assert "The measurement was interrupted" in told["notes"][0]
    (row,) = told["rows"]
    assert row["model"] == "dense"
    assert row["metrics"]["accuracy"] is not None
    assert row["latency_ms"]["p50"] is None
    assert "| dense | eager | cpu | fp32 |" in (tmp_path / "report.md").read_text()
    assert tiny_bert.training


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"devices": ["cuda:77"]}, "there is no cuda:77 here, only cpu"),
        ({"seconds": 0}, "seconds must be a number of at least"),
        ({"batch_sizes": [8, 0]}, "batch_sizes must be at least 1, not 0"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"threads": [-1]}, "threads must be at least 0"),
        ({"runtimes": []}, "runtimes is empty"),
    ],
)
def test_settings_out_of_range_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchmarkSettings(**choice)


def test_bf16_is_left_out_where_it_is_slow_unless_asked_for(
    tiny_bert: PreTrainedModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BenchmarkSettings(runtimes=["eager"], devices=["cpu"], seconds=0.001)
    for capable, expected in ((False, ["fp32"]), (True, ["fp32", "bf16"])):
        capabilities = {"avx512_bf16": capable, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=capabilities: has)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        report = measured({"dense": tiny_bert}, examples, settings)
        assert [row.precision for row in report.rows] == expected
        assert any("No bf16 on cpu" in line for line in report.protocol) is not capable
        assert all(notes_of(report, row) == [] for row in report.rows)


@pytest.mark.slow
def test_compiled_models_give_what_eager_ones_give(
    tiny_model: Callable[..., PreTrainedModel], examples: list[Example], tmp_path: Path
) -> None:
    model = tiny_model("bert")
    settings = BenchmarkSettings(
        precisions=["fp32"], devices=["cpu"], seconds=0.001, batch_sizes=[4]
    )
    models = {"dense": model, "compressed": pruned(model)}
    report = measured(models, examples, settings)  # type: ignore[arg-type]
    rows = as_json(report)["rows"]
    assert [row["runtime"] for row in rows] == ["eager", "eager", "compile", "compile"]
    for row in rows:
        check_types(row)
    assert rows[2]["metrics"] == pytest.approx(rows[0]["metrics"])
    assert rows[3]["metrics"] == pytest.approx(rows[1]["metrics"])
