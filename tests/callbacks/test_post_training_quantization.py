import json
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_compress.callbacks import (
    CompressionBenchmark,
    HeadPruning,
    PostTrainingPruning,
    PostTrainingQuantization,
)
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.quantization import SCHEMES, QuantizationConfig, coverage_of
from lightning_compress.quantization.selection import SKIPPED_BY_NAME
from lightning_compress.saving import load_compressed, save_compressed

from .conftest import CONFIG, Foreign, model_of


def fine_tuning(**options):
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return FineTuningModule(**{"config": CONFIG | still, "learning_rate": 3e-3, **options})


@pytest.fixture
def trained(toy_data, quiet_trainer, tmp_path):
    """Fits with quantization at the end; gives trainer, module and the checkpoint."""

    def fit(*callbacks, epochs=6, module=None, **quantization):
        metric = "score" if isinstance(module, Foreign) else "val_accuracy"
        best = ModelCheckpoint(tmp_path / f"checkpoints-{epochs}", monitor=metric, mode="max")
        module = module or fine_tuning()
        callback = PostTrainingQuantization(quantization=QuantizationConfig(**quantization))
        trainer = quiet_trainer(
            max_epochs=epochs,
            enable_checkpointing=True,
            callbacks=[*callbacks, callback, best],
        )
        trainer.fit(module, toy_data)
        return trainer, module, best

    return fit


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trained_model_is_quantized_and_reloads(trained, toy_data, scheme, caplog):
    with caplog.at_level(logging.INFO):
        smooth_alpha = 0.5 if "int8-" in scheme else None
        trainer, module, best = trained(scheme=scheme, smooth_alpha=smooth_alpha)
    coverage = coverage_of(module.model)
    assert coverage.quantized_fraction > 0.9
    assert (
        f"Quantized to {scheme}: {coverage.quantized_fraction:.1%} of the parameters" in caplog.text
    )
    assert ("classifier (classifier: small" in caplog.text) == (SCHEMES[scheme].weight_bits < 16)
    assert best.best_model_path.endswith("post_training.ckpt")
    assert manifest_of(load_compressed(Path(trainer.default_root_dir) / "dense")) == []
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    assert trainer.callback_metrics["test_accuracy"] > 0.95
    (edit,) = manifest_of(module.model)
    assert (edit["technique"], edit["scheme"]) == ("post_training_quantization", scheme)
    loaded = FineTuningModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    ids = torch.randint(2, 100, (4, 8))
    with torch.inference_mode():
        logits = [one.model.eval()(input_ids=ids).logits for one in (module, loaded)]
    assert torch.equal(*logits)


def test_any_lightning_module_is_quantized_at_its_best_epoch(trained):
    """Its score falls from epoch to epoch, so the first is its best."""
    whole = Foreign()
    trained(module=whole, epochs=3, scheme="int8-dynamic")
    first = Foreign()
    trained(module=first, epochs=1, scheme="int8-dynamic")
    weights = [model_of(one).state_dict() for one in (whole, first)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_epochs_nothing_is_trained(trained):
    trainer, module, _ = trained(epochs=0, scheme="int8-static")
    assert trainer.global_step == 0
    dense = load_compressed(Path(trainer.default_root_dir) / "dense")
    for name in coverage_of(module.model).quantized:
        made = module.model.get_submodule(name)
        error = (made.dequantized() - dense.get_submodule(name).weight).abs()
        assert (error <= made.scale * 0.5001).all()


def test_a_pruned_model_is_quantized(trained, toy_data):
    trainer, module, _ = trained(
        HeadPruning(removed_count=2, pruning_steps=1),
        PostTrainingPruning(removed_macs_fraction=0.3),
        scheme="int8-dynamic",
    )
    techniques = [edit["technique"] for edit in manifest_of(module.model)]
    assert techniques[0] == "head_pruning"
    assert techniques[-1] == "post_training_quantization"
    assert "post_training_pruning" in techniques
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    assert trainer.callback_metrics["test_accuracy"] > 0.9
    dense = load_compressed(Path(trainer.default_root_dir) / "dense")
    assert manifest_of(dense) == []


def test_the_most_sensitive_layers_are_skipped_and_drawn(toy_data, quiet_trainer, tmp_path):
    module = fine_tuning()
    logger = TensorBoardLogger(tmp_path)
    callback = PostTrainingQuantization(skip_most_sensitive=2)
    quiet_trainer(max_epochs=2, callbacks=[callback], logger=logger).fit(module, toy_data)
    reasons = coverage_of(module.model).skipped
    skipped = [name for name, why in reasons.items() if "skip_most_sensitive" in why]
    assert len(skipped) == 2
    assert SKIPPED_BY_NAME not in reasons.values()
    assert all(isinstance(module.model.get_submodule(name), nn.Linear) for name in skipped)
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert "sensitivity to quantization" in board.Tags()["images"]
    assert (Path(logger.log_dir) / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    (fraction_logged,) = board.Scalars("quantized_fraction")
    assert fraction_logged.value == pytest.approx(coverage_of(module.model).quantized_fraction)


def test_the_report_has_the_dense_model_in_every_precision(toy_data, quiet_trainer, tmp_path):
    measure = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32", "int8-static"], latency_examples=4, seconds=0.01
    )
    callbacks = [PostTrainingQuantization(), measure]
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
    module = fine_tuning()
    trainer.fit(module, toy_data)
    trainer.test(module, toy_data, verbose=False)
    report = json.loads((Path(trainer.default_root_dir) / "report.json").read_text())
    rows = {(row["model"], row["precision"]): row for row in report["rows"]}
    assert list(rows) == [
        ("dense", "fp32"), ("dense", "int8-static"), ("compressed", "int8-dynamic"),
    ]  # fmt: skip
    assert all(row["metrics"]["accuracy"] is not None for row in rows.values())
    assert rows["compressed", "int8-dynamic"]["techniques"] == ["post_training_quantization"]
    assert rows["compressed", "int8-dynamic"]["size_bytes"] < rows["dense", "fp32"]["size_bytes"]
    macs = {row["macs"] for row in rows.values()}
    assert len(macs) == 1
    assert len({row["parameters"] for row in rows.values()}) == 1


def test_a_quantized_model_cannot_be_trained(trained, toy_data, quiet_trainer, tmp_path):
    _, module, _ = trained(epochs=1)
    folder = save_compressed(module.model, tmp_path / "quantized")
    again = FineTuningModule(pretrained=str(folder))
    with pytest.raises(InputError, match="is quantized, to int8-dynamic: train the model that"):
        quiet_trainer(max_epochs=1).fit(again, toy_data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_most_sensitive": -1}, "skip_most_sensitive must be at least 0, not -1"),
        ({"calibration_examples": 0}, "calibration_examples must be at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PostTrainingQuantization(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheme": "int4-weight", "group_size": 12},
            "group_size: 12 does not divide",
        ),
        (
            {"skip_modules": ["bert.head"]},
            "skip_modules: .* has no module 'bert.head'",
        ),
    ],
)
def test_impossible_options_are_refused_before_training(toy_data, quiet_trainer, options, message):
    module = fine_tuning()
    callback = PostTrainingQuantization(quantization=QuantizationConfig(**options))
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    with pytest.raises(InputError, match=message):
        trainer.fit(module, toy_data)
    assert trainer.global_step == 0
    assert manifest_of(module.model) == []


@pytest.mark.parametrize("max_loss", [None, 1.0])
@pytest.mark.parametrize("where", ["a weight", "an output"])
def test_a_model_that_overflows_in_fp16_stays_in_floating_point(
    toy_data, quiet_trainer, where, max_loss
):
    module = Foreign()
    layer = module.net.bert.encoder.layer[0]
    with torch.no_grad():
        if where == "a weight":
            layer.intermediate.dense.bias[0] = 1e5
            layer.output.dense.weight[:, 0] = 0
        else:
            layer.intermediate.dense.bias[0] = 6e4
            layer.output.dense.weight[0, 0] = 100
    callback = PostTrainingQuantization(quantization=QuantizationConfig("fp16"), max_loss=max_loss)
    trainer = quiet_trainer(max_epochs=0, callbacks=[callback])
    named = "layer.0.intermediate.dense.bias" if where == "a weight" else "layer.0.output.dense"
    with pytest.warns(UserWarning, match=f"{named}.*The model stays in floating point"):
        trainer.fit(module, toy_data)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert not manifest_of(module.net)
