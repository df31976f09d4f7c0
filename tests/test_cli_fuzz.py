"""Every option with every kind of wrong value: it is taken, or refused in one line."""

import inspect
import math
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from lightning_compress import callbacks
from lightning_compress.cli import trainer as command
from lightning_compress.data.options import TextDataOptions
from lightning_compress.distillation.objective import Losses
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.modules.options import DistillationOptions
from lightning_compress.quantization import QuantizationConfig

VALUES: list[Any] = [
    None, math.nan, math.inf, -math.inf, -1, -0.5, 0, 1e308, 10**12, "x", [], {}, True,
]  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "IterativeMagnitudePruning": {"sparsity": 0.5},
    "HeadPruning": {"removed_fraction": 0.5},
    "NeuronPruning": {"removed_fraction": 0.5},
    "LayerPruning": {"removed_count": 1},
    "StructuredPruning": {"removed_macs_fraction": 0.5},
    "PostTrainingPruning": {"removed_macs_fraction": 0.5},
    "PostTrainingQuantization": {},
    "QuantizationAwareTraining": {},
    "EncoderBlockSubstitution": {"num_groups": 1, "width": 8},
    "CompressionBenchmark": {},
}
BERT = {"config": {"model_type": "bert"}}


def _class(name: str, **options: Any) -> dict[str, Any]:
    path = name if "." in name else f"callbacks.{name}"
    return {"class_path": f"lightning_compress.{path}", "init_args": options}


def _callback(name: str, option: str, value: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [_class(name, **{**NEEDED.get(name, {}), option: value})]}}


def _quantization(option: str, value: Any) -> dict[str, Any]:
    return _callback("PostTrainingQuantization", "quantization", {option: value})


def _model(option: str, value: Any) -> dict[str, Any]:
    return {"model": _class("modules.DistillationModule", **{**BERT, option: value})}


def _loss(term: str, value: Any) -> dict[str, Any]:
    return _model("losses", {term: {"weight": value}})


def _data(option: str, value: Any) -> dict[str, Any]:
    return {"data": _class("data.TextClassificationDataModule", **{option: value})}


def _options() -> Iterator[tuple[str, Callable[[Any], dict[str, Any]]]]:
    """The name of each option, and what makes a recipe that sets it to a value."""
    for name in NEEDED:
        owner = BenchmarkSettings if name == "CompressionBenchmark" else getattr(callbacks, name)
        for option in inspect.signature(owner).parameters:
            yield f"{name}.{option}", partial(_callback, name, option)
    for option in inspect.signature(QuantizationConfig).parameters:
        yield f"quantization.{option}", partial(_quantization, option)
    for option in [*typing.get_type_hints(DistillationOptions), "teacher"]:
        yield f"model.{option}", partial(_model, option)
    for term in inspect.signature(Losses).parameters:
        yield f"losses.{term}", partial(_loss, term)
    for option in typing.get_type_hints(TextDataOptions):
        if option != "path":  # the hub is asked for "x"
            yield f"data.{option}", partial(_data, option)


OPTIONS = dict(_options())


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_is_taken_or_refused_in_a_line(
    option: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fit", "test", "validate"):
        monkeypatch.setattr(L.Trainer, name, lambda *_, **__: None)
    monkeypatch.setattr(command.CompressCLI, "after_fit", lambda _: None)
    monkeypatch.chdir(tmp_path)
    for value in VALUES:
        recipe = OPTIONS[option](value)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code, printed = run(
            "fit", "--config", tmp_path / "recipe.yaml", "--trainer.accelerator", "cpu"
        )
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert code in (0, None, 2), value
        assert len(errors) == (code == 2), (value, printed)
        assert len(printed) < 2000, value
