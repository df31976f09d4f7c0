"""The benchmark after the test loop, on a LightningModule that is nobody's in particular."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lightning_compress.callbacks import CompressionBenchmark, IterativeMagnitudePruning
from lightning_compress.callbacks.run import dense_models
from lightning_compress.callbacks.tensorboard import log_charts
from lightning_compress.errors import InputError
from lightning_compress.evaluation.report import columns
from lightning_compress.evaluation.report.columns import Column
from lightning_compress.models import set_masks_
from lightning_compress.saving import save_compressed
from lightning_compress.types import Batch


class Theirs(L.LightningModule):
    """Somebody's module around a Hugging Face model."""

    def __init__(self, encoder: PreTrainedModel, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters("rate")
        self.encoder = encoder.train()

    def forward(self, batch: Batch) -> Any:
        return self.encoder(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self(batch).loss
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        right = self(batch).logits.argmax(-1) == batch["labels"]
        self.log("right", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"])


class Pruning(L.Callback):
    """Masks half of each weight when training is over."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        dense_models.save(trainer, pl_module)
        assert isinstance(pl_module, Theirs)
        weights = {n: p for n, p in pl_module.encoder.named_parameters() if p.dim() == 2}
        set_masks_(pl_module.encoder, {n: p.abs() > p.abs().median() for n, p in weights.items()})


def batches(size: int = 4, count: int = 10) -> DataLoader[Batch]:
    """Batches with padding on the right."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    ids = torch.randint(1, 100, (count, 8), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()
    rows = [
        {
            "input_ids": ids[n] * mask[n],
            "attention_mask": mask[n],
            "labels": torch.tensor(n % 2),
            "example_id": torch.tensor(n),
        }
        for n in range(count)
    ]
    return DataLoader(rows, batch_size=size)  # type: ignore[arg-type]


class Compressing(L.Callback):
    """Charts what magnitude pruning does, and does nothing."""

    charts = IterativeMagnitudePruning.charts

    def __init__(self, sparsity: float, scope: str | None = None) -> None:
        self.hparams = {"sparsity": sparsity, "scope": scope}


def trainer_in(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    logger = TensorBoardLogger(folder, name="toy", default_hp_metric=False)
    return L.Trainer(
        accelerator="cpu", logger=logger, callbacks=list(callbacks), max_steps=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        log_every_n_steps=1, **options,
    )  # fmt: skip


def quick(**options: Any) -> CompressionBenchmark:
    return CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001, **options
    )


def events_in(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "toy/version_0"), {"tensors": 0}).Reload()


def charts_in(events: EventAccumulator) -> list[list[str]]:
    """The tags in each chart of the page."""
    layout = layout_pb2.Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    return [list(chart.multiline.tag) for chart in layout.category[0].chart]


def report_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "toy/version_0/report.json").read_text())
    return found


def test_fit_prune_test_reports_dense_and_compressed(
    tiny_bert: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Theirs(tiny_bert)
    trainer = trainer_in(tmp_path, Pruning(), quick())
    trainer.fit(module, batches())
    (tested,) = trainer.test(module, batches())
    report = report_in(tmp_path)
    assert report["run"]["name"] == "toy/version_0"
    assert report["task"]["examples"] == 10
    assert report["task"]["name"] == "BertForSequenceClassification"
    dense, compressed = report["rows"]
    assert (dense["model"], compressed["model"]) == ("dense", "compressed")
    assert compressed["metrics"]["accuracy"] == pytest.approx(tested["right"])
    zeros = sum(int((p == 0).sum()) for p in tiny_bert.parameters())
    assert compressed["parameters"] - compressed["nonzero_parameters"] == zeros
    assert compressed["nonzero_parameters"] < 0.6 * dense["nonzero_parameters"]
    assert compressed["note"] == "masks only: shapes are unchanged, so nothing gets faster"
    folder = tmp_path / "toy/version_0"
    assert "| compressed | eager | cpu | fp32 |" in (folder / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "compressed" in printed
    assert "10 examples of the test split" in printed
    # Nothing that was made in the test loop's inference mode is left behind.
    assert not any(p.is_inference() for p in tiny_bert.parameters())


def test_tensorboard_has_the_report_the_hyperparameters_and_the_page(
    tiny_bert: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Theirs(tiny_bert, rate=0.05)
    monkeypatch.setattr(Compressing, "__module__", "lightning_compress.callbacks.some")
    trainer = trainer_in(tmp_path, Compressing(0.8), quick(batch_sizes=[2]))
    trainer.fit(module, batches())
    trainer.test(module, batches())
    events = events_in(tmp_path)
    text = events.Tensors("report/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| dense | eager | cpu | fp32 |" in text
    accuracy = report_in(tmp_path)["rows"][0]["metrics"]["accuracy"]
    assert events.Scalars("final/accuracy")[0].value == pytest.approx(accuracy)
    assert events.Scalars("final/size_bytes")[0].value > 0
    together, layers = charts_in(events)
    assert together == ["^sparsity/total$", "^val_accuracy$"]
    (tag,) = layers
    assert re.match(tag, "sparsity/bert.encoder.layer.0.output.dense")
    assert not re.match(tag, "sparsity/total")
    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info
    assert start.hparams["rate"].number_value == 0.05
    assert start.hparams["Compressing/sparsity"].number_value == 0.8
    # A column of nothing for what was left out would hide what was not.
    assert not {"CompressionBenchmark/baseline", "Compressing/scope"} & set(start.hparams)


def test_a_new_measured_column_reaches_the_report_and_tensorboard(
    tiny_bert: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = Column(
        key="largest_logit",
        measure=lambda prepared, work: float(prepared(prepared.load(work.longest)).abs().max()),
        heading="largest logit",
        terminal="logit",
        how_measured="on the longest batch.",
    )
    monkeypatch.setattr(columns, "COLUMNS", [*columns.COLUMNS, largest])
    trainer = trainer_in(tmp_path, quick(batch_sizes=[2]))
    trainer.fit(Theirs(tiny_bert), batches())
    trainer.test(trainer.lightning_module, batches())
    value = report_in(tmp_path)["rows"][0]["largest_logit"]
    assert value > 0
    text = (tmp_path / "toy/version_0/report.md").read_text()
    assert "| largest logit |" in text
    assert "- largest logit: on the longest batch." in text
    assert events_in(tmp_path).Scalars("final/largest_logit")[0].value == pytest.approx(value)


def test_a_perplexity_is_not_drawn_in_one_chart_with_the_sparsity(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, Compressing(0.5))
    log_charts(trainer, L.LightningModule(), "val_perplexity", metric_is_fraction=False)
    trainer.logger.finalize("success")  # type: ignore[union-attr]
    total, _, metric = charts_in(events_in(tmp_path))
    assert (total, metric) == (["^sparsity/total$"], ["^val_perplexity$"])


def test_a_run_that_compresses_nothing_gets_no_page(tmp_path: Path) -> None:
    log_charts(trainer_in(tmp_path), L.LightningModule(), "val_accuracy", metric_is_fraction=True)
    assert not list(tmp_path.rglob("events.*"))


def test_without_an_edit_the_model_is_measured_alone(
    tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    trainer_in(tmp_path, quick()).test(Theirs(tiny_bert), batches(), verbose=False)
    (row,) = report_in(tmp_path)["rows"]
    assert (row["model"], row["techniques"], row["retention"]) == ("dense", [], 1.0)


def test_a_baseline_is_compared_with(
    tiny_bert: PreTrainedModel, tiny_model: Any, tmp_path: Path
) -> None:
    larger = save_compressed(tiny_model("bert", num_hidden_layers=4), tmp_path / "larger")
    trainer = trainer_in(tmp_path, quick(baseline=str(larger)))
    trainer.test(Theirs(tiny_bert), batches(), verbose=False)
    dense, compressed = report_in(tmp_path)["rows"]
    assert dense["parameters"] > compressed["parameters"]
    assert dense["macs"] > 1.9 * compressed["macs"]


def test_a_missing_baseline_stops_before_the_loop(
    tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, quick(baseline=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"baseline: .*nowhere is no saved model"):
        trainer.fit(Theirs(tiny_bert), batches())


def test_limited_test_batches_limit_the_benchmark(
    tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, quick(), limit_test_batches=2)
    trainer.test(Theirs(tiny_bert), batches(size=3), verbose=False)
    assert report_in(tmp_path)["task"]["examples"] == 6


def test_a_fast_dev_run_leaves_nothing(tiny_bert: PreTrainedModel, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, quick(), fast_dev_run=True, default_root_dir=tmp_path)
    trainer.test(Theirs(tiny_bert), batches(), verbose=False)
    assert not list(tmp_path.rglob("report.*"))


# Two processes test nine examples, each its share; the first one measures all of them.
SCRIPT = """
import sys, warnings
import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification
from lightning_compress.callbacks import CompressionBenchmark
from tests.callbacks.conftest import two_processes

warnings.filterwarnings("ignore")

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8))

    def test_step(self, batch, batch_idx):
        pass

rows = [{"input_ids": torch.full((1 + n,), n), "labels": n % 2, "example_id": n} for n in range(9)]
if sys.argv[2] == "without ids":
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
benchmark = CompressionBenchmark(
    runtimes=["eager"], precisions=["fp32"], devices=["cpu"], seconds=0.001)
trainer = two_processes(sys.argv[1], callbacks=[benchmark])
trainer.test(Module(), DataLoader(rows, batch_size=1), verbose=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["with ids", "without ids"])
def test_the_first_of_two_processes_measures_the_whole_split(
    run_script: Callable[..., str], tmp_path: Path, rows: str
) -> None:
    run_script(SCRIPT, rows)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["task"]["examples"] == 9
    assert report["task"]["tokens"] == {"p50": 5, "p95": 9, "max": 9}
    assert len(report["rows"]) == 1


def test_a_module_without_a_transformer_is_left_alone(tmp_path: Path) -> None:
    class Plain(L.LightningModule):
        def test_step(self, batch: Batch, batch_idx: int) -> None:
            self.log("nothing", 0.0, batch_size=1)

    with pytest.warns(UserWarning, match="Plain holds no Hugging Face model"):
        trainer_in(tmp_path, quick()).test(Plain(), batches(), verbose=False)
    assert not (tmp_path / "toy/version_0/report.json").exists()
