"""Mistakes in a recipe are one line each, which names the option."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from lightning_compress.cli.mistakes import one_line

CALLBACK = "lightning_compress.callbacks."


def callback(name: str, **options: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [{"class_path": CALLBACK + name, "init_args": options}]}}


def model(name: str = "FineTuningModule", **options: Any) -> dict[str, Any]:
    return {"model": {"class_path": f"lightning_compress.modules.{name}", "init_args": options}}


def data(**options: Any) -> dict[str, Any]:
    path = "lightning_compress.data.TextClassificationDataModule"
    return {"data": {"class_path": path, "init_args": options}}


HEADS = {"removed_fraction": 0.5}
MISTAKES = [
    (
        callback("HeadPruning", **HEADS, minimum="x"),
        "HeadPruning.minimum: it is x, and must be int",
    ),
    (callback("HeadPruning", **HEADS, minimum=None), "HeadPruning.minimum is null: give it"),
    (callback("HeadPruning", **HEADS, minimun=1), "HeadPruning: Option 'minimun' is not accepted"),
    (callback("Nothing"), "Nothing: module 'lightning_compress.callbacks' has no attribute"),
    (
        callback("PostTrainingQuantization", quantization={"scheme": "int9"}),
        "PostTrainingQuantization.quantization.scheme: it is int9, and must be one of 'fp32'",
    ),
    (
        callback("PostTrainingQuantization", quantization={"group_size": None}),
        "PostTrainingQuantization.quantization.group_size is null",
    ),
    (callback("CompressionBenchmark", seconds=math.nan), "seconds must be a number of at least"),
    (callback("CompressionBenchmark", seconds=1e308), "seconds must be a number of at least"),
    (callback("CompressionBenchmark", seconds=None), "CompressionBenchmark.seconds is null"),
    (
        callback("EncoderBlockSubstitution", distil_learning_rate=math.nan),
        "distil_learning_rate must be a number of at least",
    ),
    (callback("EncoderBlockSubstitution", depth=10**9), "depth must be a number of at least"),
    (model(learning_rate=math.nan), "model.learning_rate must be a number of at least"),
    (model(learning_rate=-1), "model.learning_rate must be a number of at least"),
    (model(weight_decay=-math.inf), "model.weight_decay must be a number of at least"),
    (model(learning_rate=None), "FineTuningModule.learning_rate is null"),
    (model("DistillationModule", losses=None), "DistillationModule.losses is null"),
    (
        model("DistillationModule", losses={"task": {"weight": "x"}}),
        "DistillationModule.losses.task.TaskLoss.weight: it is x, and must be float or tuple",
    ),
    (model(num_labels=-1), "model.num_labels must be a number of at least"),
    (data(batch_size=None), "TextClassificationDataModule.batch_size is null"),
    ({"trainer": {"max_epoch": 3}}, "does not accept option 'trainer.max_epoch'"),
    ({"trainer": {"max_epochs": "x"}}, "trainer.max_epochs: it is x, and must be int or null"),
]


@pytest.mark.parametrize(("recipe", "message"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_a_mistake_is_one_line(
    recipe: dict[str, Any], message: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        pytest.fail("the training started")

    monkeypatch.setattr(L.Trainer, "fit", fit)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, printed = run("fit", "--config", tmp_path / "recipe.yaml", "--trainer.accelerator", "cpu")
    assert code == 2
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert message in line
    assert "usage:" not in printed
    assert "Traceback" not in printed


def test_a_message_behind_the_name_of_its_option() -> None:
    assert (
        one_line('Parser key "config": File does not exist: a') == "config: File does not exist: a"
    )


def test_other_messages_stay() -> None:
    assert one_line("there is no file x") == "there is no file x"
