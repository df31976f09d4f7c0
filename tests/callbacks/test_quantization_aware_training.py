import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.callbacks import (
    CompressionBenchmark,
    HeadPruning,
    IterativeMagnitudePruning,
    QuantizationAwareTraining,
)
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.modules import DistillationModule, FineTuningModule, QATModule
from lightning_compress.quantization import QuantizationConfig, coverage_of
from lightning_compress.quantization.fake_quantized import (
    FakeQuantLinear,
    is_prepared,
    log_scales_of,
)
from lightning_compress.saving import load_compressed, save_compressed

from ..conftest import SaveEveryStep, assert_same
from .conftest import CONFIG, Foreign, model_of, state

STILL = CONFIG | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
INTEGER_SCHEMES = ["int8-weight", "int4-weight", "int8-dynamic", "int8-static"]


def qat(scheme="int8-dynamic", *, start=0.0, freeze=0.1, **quantization):
    torch.manual_seed(0)
    config = QuantizationConfig(scheme, **quantization)
    return QATModule(
        config=STILL, learning_rate=3e-3, quantization=config, start=start, freeze=freeze
    )


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_the_validated_model_is_the_saved_model(toy_data, quiet_trainer, tmp_path, scheme, caplog):
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val_loss", mode="min")
    trainer = quiet_trainer(max_epochs=6, enable_checkpointing=True, callbacks=[best])
    module = qat(scheme=scheme)
    with caplog.at_level(logging.INFO):
        trainer.fit(module, toy_data)
    assert f"Fake quantization to {scheme} from step 0 on" in caplog.text
    assert f"Quantized to {scheme}: " in caplog.text
    assert coverage_of(module.model).quantized_fraction > 0.9
    assert not is_prepared(module.model)
    assert best.best_model_path.endswith("post_training.ckpt")
    (edit,) = manifest_of(module.model)
    assert (edit["technique"], edit["scheme"]) == ("quantization_aware_training", scheme)
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    assert trainer.callback_metrics["test_accuracy"] > 0.95
    loaded = QATModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    folder = save_compressed(module.model, tmp_path / "model")
    ids = torch.randint(2, 100, (4, 8))
    with torch.inference_mode():
        logits = [
            model.eval()(input_ids=ids).logits
            for model in (module.model, loaded.model, load_compressed(folder))
        ]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    dense = load_compressed(Path(trainer.default_root_dir) / "dense")
    assert manifest_of(dense) == []


def test_the_last_validation_loss_is_that_of_the_quantized_model(toy_data, quiet_trainer):
    module = qat(scheme="int8-static")
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, toy_data)
    before = float(trainer.callback_metrics["val_loss"])
    (after,) = trainer.validate(module, toy_data, verbose=False)
    assert after["val_loss"] == before


def test_scales_are_learned_and_then_frozen(toy_data, quiet_trainer):
    class Watch(SaveEveryStep):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            found = torch.cat([p.detach().flatten() for p in log_scales_of(pl_module.model)])
            self.seen.append(found.clone())

    watch = Watch()
    trainer = quiet_trainer(max_epochs=2, callbacks=[watch])
    trainer.fit(qat(scheme="int8-static", freeze=0.25), toy_data)
    steps = len(watch.seen)
    moving = [not torch.equal(a, b) for a, b in zip(watch.seen, watch.seen[1:], strict=False)]
    frozen = round(0.75 * steps)
    assert all(moving[: frozen - 1])
    assert not any(moving[frozen - 1 :])
    assert (watch.seen[-1] != 0).float().mean() > 0.9


def test_training_before_the_start_is_unchanged(toy_data, quiet_trainer, tmp_path):
    """The learning rate continues its schedule."""
    rates: dict[str, Any] = {}
    for name, module in (("plain", FineTuningModule), ("late", QATModule)):
        torch.manual_seed(0)
        late = module is QATModule
        config = QuantizationConfig("int8-static")
        options: dict[str, Any] = {"start": 0.5, "quantization": config} if late else {}
        trained = module(config=STILL, learning_rate=3e-3, **options)
        folder = tmp_path / name
        trainer = quiet_trainer(max_epochs=4, callbacks=[SaveEveryStep(folder)])
        trainer.fit(trained, toy_data)
        half = trainer.global_step // 2
        checkpoints = {
            step: torch.load(folder / f"step={step}.ckpt", weights_only=True)
            for step in (half, trainer.global_step - 1)
        }
        rates[name] = [
            checkpoint["lr_schedulers"][0]["_last_lr"] for checkpoint in checkpoints.values()
        ]
        rates[f"{name} weights"] = torch.load(folder / f"step={half - 1}.ckpt", weights_only=True)[
            "state_dict"
        ]
    assert rates["plain"] == rates["late"]
    assert_same(rates["plain weights"], rates["late weights"])


@pytest.mark.parametrize(
    "scheme", [pytest.param("int8-dynamic", marks=pytest.mark.slow), "int8-static"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(text_files, quiet_trainer, tmp_path, scheme):
    def fit(*callbacks, **options):
        data = TextClassificationDataModule(
            path=str(text_files), tokenizer=str(text_files / "tokenizer"), max_length=16,
            batch_size=8, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        module = qat(scheme=scheme, start=0.3, smooth_alpha=0.5)
        trainer = quiet_trainer(max_epochs=2, callbacks=[*callbacks])
        trainer.fit(module, datamodule=data, weights_only=True, **options)
        return state(trainer, module), trainer.global_step

    whole, steps = fit(SaveEveryStep(tmp_path))
    assert steps > 20
    for step in (2, round(0.3 * steps), round(0.3 * steps) + 1, steps - 2):
        resumed, _ = fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert_same(resumed, whole)


@pytest.mark.parametrize("scheme", ["int4-weight", "int8-static"])
def test_any_lightning_module_resumes(toy_data, quiet_trainer, tmp_path, scheme):
    def fit(*callbacks, **options):
        module = Foreign()
        callback = QuantizationAwareTraining(quantization=QuantizationConfig(scheme), start=0.4)
        trainer = quiet_trainer(max_epochs=3, callbacks=[callback, *callbacks])
        trainer.fit(module, toy_data, weights_only=True, **options)
        return state(trainer, module)

    whole = fit(SaveEveryStep(tmp_path))
    for step in (8, 16):
        assert_same(fit(ckpt_path=tmp_path / f"step={step}.ckpt"), whole)


def test_pruned_weights_stay_zero_in_the_same_run(toy_data, quiet_trainer):
    """Heads are removed, weights masked, then fake-quantized, in one run."""
    callbacks = [
        HeadPruning(removed_count=2, pruning_steps=1, recovery=0.6),
        IterativeMagnitudePruning(sparsity=0.5, recovery=0.6),
    ]
    module = qat(scheme="int8-dynamic", start=0.6)
    trainer = quiet_trainer(max_epochs=5, callbacks=callbacks)
    trainer.fit(module, toy_data)
    techniques = [edit["technique"] for edit in manifest_of(module.model)]
    assert techniques[-1] == "quantization_aware_training"
    assert {"head_pruning", "magnitude_pruning"} <= set(techniques)
    inner = torch.cat(
        [
            made.weight.flatten()
            for name, made in module.model.named_modules()
            if "encoder" in name and isinstance(made, QuantizedLinear)
        ]
    )
    assert 0.5 <= float((inner == 0).float().mean()) < 0.6


def test_distillation_from_the_dense_model(toy_data, quiet_trainer, tmp_path):
    teacher = FineTuningModule(config=STILL, learning_rate=3e-3)
    torch.manual_seed(0)
    quiet_trainer(max_epochs=6).fit(teacher, toy_data)
    folder = save_compressed(teacher.model, tmp_path / "teacher")
    options: dict[str, Any] = {"pretrained": str(folder), "teacher": "dense", "learning_rate": 1e-3}
    for module in (
        QATModule(**options, quantization=QuantizationConfig("int4-weight")),
        DistillationModule(**options),
    ):
        callback = QuantizationAwareTraining(quantization=QuantizationConfig("int4-weight"))
        callbacks = [] if isinstance(module, QATModule) else [callback]
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
        trainer.fit(module, toy_data)
        assert float(trainer.callback_metrics["val_agreement"]) > 0.9
        assert coverage_of(module.model).quantized_fraction > 0.9


def test_the_report_has_rows_of_both_models(toy_data, quiet_trainer, caplog):
    measure = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], latency_examples=4, seconds=0.01
    )
    trainer = quiet_trainer(max_epochs=2, callbacks=[measure])
    module = qat()
    trainer.fit(module, toy_data)
    trainer.test(module, toy_data, verbose=False)
    report = json.loads((Path(trainer.default_root_dir) / "report.json").read_text())
    rows = [(row["model"], row["precision"], row["techniques"]) for row in report["rows"]]
    assert rows == [
        ("dense", "fp32", []),
        ("compressed", "int8-dynamic", ["quantization_aware_training"]),
    ]
    callback = [one for one in trainer.callbacks if isinstance(one, QuantizationAwareTraining)]
    assert len(callback) == 1
    assert "will override existing callbacks" not in caplog.text


def test_a_model_saved_during_training_is_quantized(toy_data, quiet_trainer, tmp_path):
    module = qat()

    class SaveModel(SaveEveryStep):
        def on_train_end(self, trainer, pl_module):
            assert isinstance(model_of(pl_module).bert.pooler.dense, FakeQuantLinear)
            save_compressed(pl_module.model, tmp_path / "middle")

    quiet_trainer(max_epochs=1, callbacks=[SaveModel(tmp_path)]).fit(module, toy_data)
    middle = load_compressed(tmp_path / "middle")
    assert coverage_of(middle).quantized_fraction > 0.9
    assert_same(middle.state_dict(), module.model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.0}, r"start must be a fraction of the run in \[0, 1\), not 1.0"),
        ({"freeze": -0.1}, r"freeze must be a fraction of the run in \[0, 1\), not -0.1"),
        ({"start": 0.6, "freeze": 0.5}, "start and freeze must add up to less than 1, not to 1.1"),
        ({"calibration_examples": 0}, "calibration_examples must be at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        QuantizationAwareTraining(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "bf16"}, "bf16 needs no quantization-aware training: train with"),
        (
            {"scheme": "int4-weight", "group_size": 12},
            "group_size: 12 does not divide",
        ),
    ],
)
def test_impossible_options_are_refused_before_training(toy_data, quiet_trainer, options, message):
    trainer = quiet_trainer(max_epochs=1)
    with pytest.raises(InputError, match=message):
        trainer.fit(qat(**options), toy_data)
    assert trainer.global_step == 0


DDP = """
import json, sys
import lightning as L, torch
from tests.conftest import ToyData
from tests.callbacks.conftest import SameEverywhere, two_processes
from tests.callbacks.test_quantization_aware_training import STILL
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization.fake_quantized import log_scales_of
from lightning_compress.modules import QATModule
from lightning_compress.quantization import QuantizationConfig

class Learned(L.Callback):
    most = 0.0

    def on_train_batch_end(self, trainer, pl_module, *_):
        learned = [float(one.abs().max()) for one in log_scales_of(pl_module.model)]
        self.most = max(learned, default=self.most)

if __name__ == "__main__":
    torch.manual_seed(0)
    data, learned = ToyData(), Learned()
    module = QATModule(
        config=STILL, learning_rate=3e-3, start=0.25, quantization=QuantizationConfig("int8-static")
    )
    trainer = two_processes(
        sys.argv[1], max_epochs=4, callbacks=[SameEverywhere(), learned]
    )
    trainer.fit(module, data)
    layers = [one for one in module.model.modules() if isinstance(one, QuantizedLinear)]
    found = [
        len(layers),
        learned.most,
        *(float(value.double().sum()) for value in module.model.state_dict().values()),
    ]
    with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_learn_equal_scales(run_script, tmp_path):
    run_script(DDP)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0][0] == 25
    assert found[0][1] > 0


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static"])
def test_a_run_that_has_ended_is_not_resumed(toy_data, quiet_trainer, tmp_path, scheme):
    def fit(folder, **options):
        callback = QuantizationAwareTraining(quantization=QuantizationConfig(scheme))
        kept = ModelCheckpoint(dirpath=folder)
        trainer = quiet_trainer(max_epochs=1, callbacks=[callback, kept], enable_checkpointing=True)
        trainer.fit(Foreign(), toy_data, **options)
        return kept.best_model_path

    ended = fit(tmp_path / "first")
    with pytest.raises(InputError, match=f"is quantized, to {scheme}: resume from an earlier"):
        fit(tmp_path / "second", weights_only=True, ckpt_path=ended)


@pytest.mark.parametrize("first", [0, 1])
def test_pruning_after_the_start_is_refused_before_training(toy_data, quiet_trainer, first):
    pruning = HeadPruning(removed_fraction=0.5, pruning_steps=3, warmup=0.2, recovery=0.2)
    quantizing = QuantizationAwareTraining(
        quantization=QuantizationConfig("int8-dynamic"), start=0.5
    )
    callbacks = [pruning, quantizing] if first else [quantizing, pruning]
    trainer = quiet_trainer(max_epochs=4, callbacks=callbacks)
    with pytest.raises(
        InputError, match=r"HeadPruning changes the model until step .* at least 0\.8"
    ):
        trainer.fit(FineTuningModule(config=CONFIG), toy_data)
    assert trainer.global_step == 0
