"""The guard of PostTrainingQuantization on models that were made hard to quantize."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel

from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.callbacks import CompressionBenchmark, PostTrainingQuantization
from lightning_compress.callbacks.accuracy_guard import validation_examples
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.quantization import QuantizationConfig, coverage_of
from lightning_compress.quantization.accuracy_guard import GIVEN_BACK
from lightning_compress.quantization.modules import Quantized

from ..conftest import ToyData
from ..families import tiny_language_model
from .conftest import CONFIG, Foreign, model_of

POOLER = "bert.pooler.dense"
OTHERS = ["bert.embeddings", "bert.encoder"]


def loader(rows: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Batches of a list."""
    return DataLoader(rows, batch_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny BERT that has learned the toy data."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    module = FineTuningModule(config=CONFIG | still, learning_rate=3e-3)
    L.Trainer(
        accelerator="cpu", devices=1, max_epochs=6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, ToyData())  # fmt: skip
    return save_compressed(module.model, tmp_path_factory.mktemp("trained") / "model")


@torch.no_grad()
def harden_(model, outlier=3000.0):
    """Make the pooler impossible to quantize: one large weight in each row, whose input is zero.

    In floating point it does nothing; beside it the other weights of the row round to nothing.
    """
    norm = model.bert.encoder.layer[-1].output.LayerNorm
    norm.weight[7] = norm.bias[7] = 0
    model.bert.pooler.dense.weight[:, 7] = outlier
    return model


@pytest.fixture
def hard(trained, tmp_path):
    """The folder of the trained model with a pooler that cannot be quantized."""
    return save_compressed(harden_(load_compressed(trained)), tmp_path / "hard")


@pytest.fixture
def quantized(toy_data, quiet_trainer):
    """Quantizes a saved model, or a module, without training; gives trainer and module."""

    def run(source, max_loss, *, skip_most_sensitive=None, **quantization):
        module = source if isinstance(source, L.LightningModule) else None
        module = module or FineTuningModule(pretrained=str(source))
        callback = PostTrainingQuantization(
            quantization=QuantizationConfig(**quantization),
            max_loss=max_loss,
            skip_most_sensitive=skip_most_sensitive,
        )
        trainer = quiet_trainer(max_epochs=0, callbacks=[callback])
        trainer.fit(module, toy_data)
        return trainer, module

    return run


def accuracy_of(model, data=None):
    """By a loop over single examples."""
    rows = (data or ToyData()).rows
    model.eval()
    with torch.inference_mode():
        right = [model(row["input_ids"][None]).logits.argmax() == row["labels"] for row in rows]
    return float(torch.stack(right).float().mean())


def guard_record(model):
    (edit,) = manifest_of(model)
    return edit["accuracy_guard"]


def given_back(model):
    return [name for name, why in coverage_of(model).skipped.items() if why == GIVEN_BACK]


def test_with_a_high_max_loss_nothing_is_given_back(hard, quantized):
    _, module = quantized(hard, 100.0)
    before = accuracy_of(load_compressed(hard))
    lost = 100 * (before - accuracy_of(module.model))
    assert lost > 20  # the pooler is destroyed indeed
    record = guard_record(module.model)
    assert record["given_back"] == {}
    assert given_back(module.model) == []
    assert record["floating_point"] == pytest.approx(before)
    assert record["points_lost"] == pytest.approx(lost, abs=1e-4)
    assert (record["examples"], record["max_loss"]) == (64, 100.0)


@pytest.mark.parametrize(
    "scheme",
    [
        "int8-dynamic",
        *(
            pytest.param(scheme, marks=pytest.mark.slow)
            for scheme in ("int8-static", "int8-weight", "int4-weight")
        ),
    ],
)
def test_exactly_the_layer_that_cannot_be_quantized_is_given_back(hard, quantized, scheme, caplog):
    with caplog.at_level(logging.INFO):
        _, module = quantized(hard, 3.0, scheme=scheme, group_size=32)
    model: Any = module.model
    dense: Any = load_compressed(hard)
    assert given_back(model) == [POOLER]
    assert torch.equal(model.bert.pooler.dense.weight, dense.bert.pooler.dense.weight)
    record = guard_record(model)
    assert record["points_lost"] == pytest.approx(
        100 * (accuracy_of(dense) - accuracy_of(model)), abs=1e-4
    )
    assert record["points_lost"] <= 3.0
    quantize_(dense, QuantizationConfig("int8-weight", skip_modules=OTHERS))
    assert list(coverage_of(dense).quantized) == [POOLER]
    alone = 100 * (record["floating_point"] - accuracy_of(dense))
    if scheme == "int8-weight":
        assert record["given_back"] == {POOLER: pytest.approx(alone, abs=1e-4)}
    assert f"given back to floating point: {POOLER} (" in caplog.text
    assert "(given back by max_loss)" in caplog.text


def test_where_nothing_fits_the_model_stays_in_floating_point(hard, quantized, tmp_path):
    expected = (
        r"max_loss: the model stays in floating point: its accuracy on 64 validation examples "
        r"would be \d+\.\d\d points worse in int8-dynamic, and max_loss allows 0\. Raise max_loss, "
        r"or use QuantizationAwareTraining$"
    )
    with pytest.warns(UserWarning, match=expected) as caught:
        trainer, module = quantized(hard, 0.0, skip_modules=OTHERS)
    assert sum("max_loss" in str(one.message) for one in caught) == 1
    assert manifest_of(module.model) == []
    before = load_compressed(hard).state_dict()
    after = module.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not trainer.callbacks[0].target_reached
    assert not list(tmp_path.rglob("post_training.ckpt"))


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_sixteen_bits_fit_or_do_not(hard, trained, quantized, scheme):
    _, module = quantized(trained, 3.0, scheme=scheme)
    record = guard_record(module.model)
    assert record["given_back"] == {}
    assert record["points_lost"] == pytest.approx(
        100 * (record["floating_point"] - accuracy_of(module.model)), abs=1e-4
    )
    # The weight overflows in 16 bits: nothing is left to measure.
    outlier = 1e6 if scheme == "fp16" else 3.4e38
    overflowing = save_compressed(harden_(load_compressed(hard), outlier), hard.parent / "over")
    with pytest.warns(UserWarning, match=rf"{scheme}: .* would become infinite"):
        _, module = quantized(overflowing, 3.0, scheme=scheme)
    assert manifest_of(module.model) == []
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}


def test_the_most_sensitive_are_skipped_first(hard, quantized):
    _, module = quantized(hard, 3.0, skip_most_sensitive=1)
    assert coverage_of(module.model).skipped[POOLER] == "most sensitive (skip_most_sensitive)"
    assert guard_record(module.model)["given_back"] == {}


class Counted(Foreign):
    """Counts its validation steps."""

    steps = 0

    def validation_step(self, batch, batch_idx):
        self.steps += 1
        super().validation_step(batch, batch_idx)


def test_any_lightning_module_is_guarded_and_its_validation_left_alone(toy_data, quiet_trainer):
    def fit(max_loss):
        module = Counted()
        callback = PostTrainingQuantization(max_loss=max_loss)
        trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
        trainer.fit(module, toy_data)
        return module, trainer.callback_metrics

    module, logged = fit(100.0)
    assert guard_record(model_of(module))["examples"] == 64
    other, without = fit(None)
    assert "accuracy_guard" not in manifest_of(model_of(other))[0]
    assert logged == without
    assert module.steps == other.steps
    weights = [model_of(one).state_dict() for one in (module, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class ForeignLanguageModel(L.LightningModule):
    """Somebody's causal language model that is sure of the texts it validates on."""

    def __init__(self):
        super().__init__()
        net: Any = tiny_language_model("gpt2", tie_word_embeddings=True)
        with torch.no_grad():
            net.transformer.ln_f.weight.mul_(30)
            # Of tied weights both uses are hard: nothing comes in there, and nothing goes on.
            net.transformer.wte.weight[:, 3] = 3000
            net.transformer.wpe.weight[:, 3] = -3000
            net.transformer.ln_f.weight[3] = net.transformer.ln_f.bias[3] = 0
        self.net = net
        prompts = torch.randint(2, 99, (16, 2), generator=torch.Generator().manual_seed(1))
        self.texts = prompts
        for _ in range(8):
            following = self.net(self.texts).logits[:, -1:].argmax(-1)
            self.texts = torch.cat([self.texts, following], dim=1)

    def _loader(self):
        return loader([{"input_ids": text, "labels": text} for text in self.texts], batch_size=4)

    train_dataloader = val_dataloader = _loader

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def validation_step(self, batch, batch_idx):
        raise AssertionError("it is not called")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_tied_weights_are_given_back_together_by_the_rise_of_the_perplexity(quiet_trainer):
    module = ForeignLanguageModel()
    callback = PostTrainingQuantization(
        quantization=QuantizationConfig("int8-weight", skip_modules=["transformer.wpe"]),
        max_loss=5.0,
    )
    trainer = quiet_trainer(max_epochs=0, callbacks=[callback], num_sanity_val_steps=0)
    trainer.fit(module)
    record = guard_record(module.net)
    assert record["metric"] == "perplexity"
    assert record["standard_error"] is None
    assert list(record["given_back"]) == ["transformer.wte", "lm_head"]
    assert record["given_back"]["lm_head"] == record["given_back"]["transformer.wte"] > 5.0
    assert record["points_lost"] <= 5.0
    assert module.net.lm_head.weight is module.net.transformer.wte.weight
    assert module.net.lm_head.weight.dtype == torch.float32
    with torch.inference_mode():
        after = module.net(module.texts, labels=module.texts).loss.exp()
    # The same number of tokens in each text, so that the mean over texts is that over tokens.
    assert record["floating_point"] + record["points_lost"] == pytest.approx(float(after), rel=1e-4)


def test_a_metric_that_is_not_finite_is_named_and_the_model_stays(quiet_trainer):
    module = ForeignLanguageModel()
    with torch.no_grad():
        module.net.transformer.ln_f.bias.fill_(torch.nan)
    callback = PostTrainingQuantization(max_loss=1.0)
    trainer = quiet_trainer(max_epochs=0, callbacks=[callback], num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"its perplexity on 16 validation examples is not finite"):
        trainer.fit(module)
    assert manifest_of(module.net) == []


@pytest.mark.parametrize("max_loss", [-0.5, float("nan"), float("inf")])
def test_a_max_loss_out_of_range_is_refused(max_loss):
    with pytest.raises(InputError, match=r"max_loss must be a number of points from 0 up, not"):
        PostTrainingQuantization(max_loss=max_loss)


def test_skip_most_sensitive_of_a_whole_model_is_refused():
    with pytest.raises(InputError, match=r"skip_most_sensitive: bf16 casts the whole model"):
        PostTrainingQuantization(quantization=QuantizationConfig("bf16"), skip_most_sensitive=1)


class Unlabelled(ToyData):
    """No validation example has a label."""

    def val_dataloader(self):
        return loader([{**row, "labels": torch.tensor(-100)} for row in self.rows])


class WithoutLabels(ToyData):
    """Validation batches have no labels at all."""

    def val_dataloader(self):
        return loader([{"input_ids": row["input_ids"]} for row in self.rows])


class Empty(ToyData):
    """The validation dataloader is empty."""

    def val_dataloader(self):
        return loader([])


class Tuples(ToyData):
    """Validation batches are no dictionaries."""

    def val_dataloader(self):
        return loader([(row["input_ids"], row["labels"]) for row in self.rows])


class WrongLabels(ToyData):
    """A label that the model does not know."""

    def val_dataloader(self):
        return loader([{**row, "labels": row["labels"] + 1} for row in self.rows])


class Headless(Foreign):
    """Somebody's own head on a base model."""

    def __init__(self):
        super().__init__()
        self.net = AutoModel.from_config(AutoConfig.for_model(**CONFIG))


class NoValidation(Foreign):
    """A module without a validation."""

    validation_step: Any = L.LightningModule.validation_step


@pytest.mark.parametrize(
    ("data", "module", "message"),
    [
        (Unlabelled, Foreign, r"max_loss: no validation example has a label: add labels, or"),
        (WithoutLabels, Foreign, r"max_loss: no validation example has a label"),
        (Empty, Foreign, r"max_loss: the validation dataloader gives no example: check the val"),
        (Tuples, Foreign, r"max_loss: the validation dataloader must give dictionaries with"),
        (WrongLabels, Foreign, r"max_loss: the validation split holds label 2, .* the trained"),
        (ToyData, Headless, r"max_loss: BertModel has no head of a supported task"),
        (ToyData, NoValidation, r"max_loss is measured on validation data and the run has none"),
    ],
)
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_what_the_guard_needs_is_checked_before_training(quiet_trainer, data, module, message):
    callback = PostTrainingQuantization(max_loss=1.0)
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback], num_sanity_val_steps=0)
    with pytest.raises(InputError, match=message):
        trainer.fit(module(), data())
    assert trainer.global_step == 0


def test_validation_that_is_switched_off_is_named(toy_data, quiet_trainer):
    callback = PostTrainingQuantization(max_loss=1.0)
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback], limit_val_batches=0)
    with pytest.raises(InputError, match=r"trainer\.limit_val_batches"):
        trainer.fit(Foreign(), toy_data)


class Mixed(ToyData):
    """Half of the validation examples have no label, in two dataloaders."""

    def val_dataloader(self):
        rows = [
            {**row, "labels": row["labels"] if place % 4 < 2 else torch.tensor(-100)}
            for place, row in enumerate(self.rows)
        ]
        return {"first": loader(rows[:40]), "second": loader(rows[40:], batch_size=4)}


def test_labelled_examples_of_all_dataloaders_count(quiet_trainer):
    class Look(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            before = torch.get_rng_state()
            self.found = validation_examples(trainer, model_of(pl_module))
            assert torch.equal(torch.get_rng_state(), before)

    look = Look()
    options = {"max_epochs": 0, "limit_val_batches": 3, "num_sanity_val_steps": 0}
    quiet_trainer(callbacks=[look], **options).fit(Foreign(), Mixed())
    examples, batch_size = look.found
    assert [one.example_id for one in examples] == [
        number for number in (*range(24), *range(40, 52)) if number % 4 < 2
    ]
    assert batch_size == 8


@pytest.mark.slow
def test_the_record_is_in_folders_checkpoints_and_the_report(
    hard, toy_data, quiet_trainer, tmp_path
):
    measure = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], latency_examples=4, seconds=0.01
    )
    callbacks = [PostTrainingQuantization(max_loss=3.0), measure]
    trainer = quiet_trainer(max_epochs=0, callbacks=callbacks)
    module = FineTuningModule(pretrained=str(hard))
    trainer.fit(module, toy_data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trainer.test(module, toy_data, verbose=False)
    folder = Path(trainer.default_root_dir)
    record = guard_record(module.model)
    assert list(record["given_back"]) == [POOLER]
    assert guard_record(load_compressed(folder / "model")) == record
    loaded = FineTuningModule.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert guard_record(loaded.model) == record
    rows = json.loads((folder / "report.json").read_text())["rows"]
    notes = {row["model"]: row["note"] or "" for row in rows}
    assert "accuracy guard (max_loss 3): quantization costs" in notes["compressed"]
    assert f"given back to floating point: {POOLER}" in notes["compressed"]
    assert "accuracy guard" not in notes["dense"]


def test_a_refused_model_can_be_tried_again(hard, toy_data, quiet_trainer, tmp_path):
    def fit(max_loss, module, ckpt_path=None):
        callback = PostTrainingQuantization(
            quantization=QuantizationConfig(skip_modules=OTHERS), max_loss=max_loss
        )
        trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
        trainer.fit(module, toy_data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    module = FineTuningModule(pretrained=str(hard), learning_rate=1e-9)
    with pytest.warns(UserWarning, match="stays in floating point"):
        fit(0.0, module).save_checkpoint(tmp_path / "refused.ckpt")
    again = FineTuningModule(pretrained=str(hard), learning_rate=1e-9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="max_loss")
        fit(100.0, again, tmp_path / "refused.ckpt")
    assert [name for name, m in again.model.named_modules() if isinstance(m, Quantized)] == [POOLER]
