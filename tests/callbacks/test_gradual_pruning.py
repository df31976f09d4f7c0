"""Head, neuron, structured and layer pruning while a model trains."""

import json
import math

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_compress.callbacks import (
    CompressionBenchmark,
    HeadPruning,
    IterativeMagnitudePruning,
    LayerPruning,
    NeuronPruning,
    PostTrainingPruning,
    StructuredPruning,
)
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, units_of
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.pruning.importance import UNIT_SCORES
from lightning_compress.saving import load_compressed

from ..conftest import SaveEveryStep, assert_same
from .conftest import CONFIG, Foreign, fit_and_report, state


def fine_tuning(seed=0, **changes):
    torch.manual_seed(seed)
    return FineTuningModule(
        config={**CONFIG, "num_hidden_layers": 3, **changes}, learning_rate=1e-3
    )


def counts(model, kind):
    return [one.count for one in units_of(model, kind)]


def test_the_removed_fraction_is_removed_from_model_and_optimizer(toy_data, quiet_trainer):
    module = fine_tuning()
    heads = HeadPruning(removed_fraction=0.5, pruning_steps=3, minimum=1)
    neurons = NeuronPruning(removed_fraction=0.5, pruning_steps=2)
    trainer = quiet_trainer(max_epochs=2, callbacks=[heads, neurons])
    trainer.fit(module, toy_data)
    assert heads.target_reached
    assert neurons.target_reached
    assert sum(counts(module.model, "heads")) == 6
    assert sum(counts(module.model, "neurons")) == 96
    assert all(count % 8 == 0 for count in counts(module.model, "neurons"))
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in module.model.parameters()}
    for parameter, moments in trainer.optimizers[0].state.items():
        assert moments["exp_avg"].shape == parameter.shape
    techniques = [edit["technique"] for edit in manifest_of(module.model)]
    assert techniques.count("head_pruning") == 3
    assert techniques.count("neuron_pruning") == 2


def test_the_macs_budget_is_met_closely(toy_data, quiet_trainer):
    module = fine_tuning()
    trainer = quiet_trainer(
        max_epochs=1, callbacks=[StructuredPruning(removed_macs_fraction=0.5, pruning_steps=2)]
    )
    trainer.fit(module, toy_data)
    # The closed formula, for sentences of 8 tokens: a head has 8 columns, a neuron one.
    heads, neurons = (sum(counts(module.model, kind)) for kind in ("heads", "neurons"))
    left = heads * (4 * 32 * 8 * 8 + 2 * 8 * 8 * 8) + neurons * 2 * 32 * 8
    whole = 12 * (4 * 32 * 8 * 8 + 2 * 8 * 8 * 8) + 192 * 2 * 32 * 8
    assert 0.42 < left / whole <= 0.5


def test_resume_in_the_middle_of_an_epoch(text_files, quiet_trainer, tmp_path):
    def fit(ckpt=None, seed=0):
        data = TextClassificationDataModule(
            path=str(text_files), tokenizer=str(text_files / "tokenizer"), max_length=16,
            batch_size=8, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        module = fine_tuning(seed)
        callbacks = [
            StructuredPruning(
                removed_macs_fraction=0.5, pruning_steps=3, score="taylor", warmup=0.2
            ),
            LayerPruning(removed_count=1),
            save,
        ]
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
        return trainer, state(trainer, module)

    trainer, whole = fit()
    assert trainer.global_step > 24
    for step in (2, 7, 11, 20):
        assert_same(fit(tmp_path / f"step={step}.ckpt", seed=7)[1], whole)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_any_module_resumes_and_tests_its_best_checkpoint_which_is_pruned(
    toy_data, quiet_trainer, tmp_path
):
    def fit(*callbacks, ckpt=None):
        pruning = HeadPruning(removed_fraction=0.5, pruning_steps=3, recovery=0.4)
        trainer = quiet_trainer(
            max_epochs=4, enable_checkpointing=not ckpt, callbacks=[pruning, *callbacks]
        )
        module = Foreign(num_hidden_layers=3)
        trainer.fit(module, toy_data, ckpt_path=ckpt, weights_only=True)
        return trainer, module

    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max", save_top_k=-1)
    trainer, module = fit(best)
    assert best.best_model_path.endswith("epoch=2.ckpt")  # the first after the last pruning step
    assert sum(counts(module.net, "heads")) == 6
    whole = state(trainer, module)
    for epoch in (0, 1, 2):
        assert_same(state(*fit(ckpt=tmp_path / f"epoch={epoch}.ckpt")), whole)
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    other = Foreign(num_hidden_layers=3)
    tester = quiet_trainer(callbacks=[HeadPruning(removed_fraction=0.5)])
    tester.test(other, toy_data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    assert counts(other.net, "heads") == counts(module.net, "heads")


def test_a_checkpoint_alone_restores_the_pruned_model(toy_data, quiet_trainer, tmp_path):
    module = fine_tuning()
    callbacks = [StructuredPruning(removed_macs_fraction=0.4), LayerPruning(removed_count=1)]
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
    trainer.fit(module, toy_data)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    loaded = FineTuningModule.load_from_checkpoint(tmp_path / "small.ckpt", weights_only=True)
    batch = next(iter(toy_data.test_dataloader()))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(batch), module.eval()(batch))
    assert manifest_of(loaded.model) == manifest_of(module.model)


def test_magnitude_pruning_and_structured_pruning_share_a_run(toy_data, quiet_trainer, tmp_path):
    def fit(ckpt=None):
        callbacks = [
            NeuronPruning(removed_fraction=0.5, pruning_steps=2),
            IterativeMagnitudePruning(sparsity=0.6),
            SaveEveryStep(tmp_path) if ckpt is None else L.Callback(),
        ]
        module = fine_tuning()
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
        trainer.fit(module, toy_data, ckpt_path=ckpt, weights_only=True)
        return trainer, module

    trainer, module = fit()
    masks = masks_of(module.model)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.4, abs=0.001)
    for name, mask in masks.items():
        assert (module.model.get_parameter(name)[~mask] == 0).all()
    again, resumed = fit(tmp_path / "step=8.ckpt")
    assert_same(state(again, resumed), state(trainer, module))


def test_calibration_does_not_change_the_position_in_the_training_data(toy_data, quiet_trainer):
    class Seen(L.Callback):
        def __init__(self):
            self.ids = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.ids.append(batch["example_id"].tolist())

    found = []
    for callbacks in ([], [HeadPruning(removed_fraction=0.5, pruning_steps=4)]):
        seen = Seen()
        quiet_trainer(max_epochs=2, callbacks=[*callbacks, seen]).fit(fine_tuning(), toy_data)
        found.append(seen.ids)
    assert found[0] == found[1]


def test_the_report_compares_with_the_dense_model_and_the_folder_loads(
    toy_data, quiet_trainer, tmp_path
):
    module = fine_tuning()
    _, small = fit_and_report(
        module,
        StructuredPruning(removed_macs_fraction=0.5, pruning_steps=2),
        toy_data,
        quiet_trainer,
    )
    assert small["techniques"] == ["structured_pruning"]
    loaded = load_compressed(tmp_path / "model")
    assert counts(loaded, "heads") == counts(module.model, "heads")
    assert counts(load_compressed(tmp_path / "dense"), "heads") == [4, 4, 4]


def test_tensorboard_shows_what_remains(toy_data, quiet_trainer, tmp_path):
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path, name="run", version=0)
    callbacks = [
        StructuredPruning(removed_macs_fraction=0.5, pruning_steps=2),
        LayerPruning(removed_count=1),
    ]
    quiet_trainer(max_epochs=2, callbacks=callbacks, logger=logger).fit(fine_tuning(), toy_data)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert len(events.Images("remaining heads")) == 3  # at the start and after each round
    assert len(events.Images("remaining neurons")) == 3
    assert [event.value for event in events.Scalars("layers")] == [3, 2]
    totals = [event.value for event in events.Scalars("neurons/total")]
    assert totals[0] == 192
    assert totals == sorted(totals, reverse=True)
    assert "importance of heads/layer 0" in events.Tags()["histograms"]


def test_the_page_charts_what_remains(toy_data, quiet_trainer, tmp_path):
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path, name="run", version=0)
    callbacks = [
        StructuredPruning(removed_macs_fraction=0.5, pruning_steps=2),
        LayerPruning(removed_count=1),
    ]
    bench = CompressionBenchmark(precisions=["fp32"])
    trainer = quiet_trainer(max_epochs=2, callbacks=[*callbacks, bench], logger=logger)
    trainer.fit(fine_tuning(), toy_data)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    (page,) = events.Tensors("custom_scalars__config__")
    for title in (b"remaining heads", b"remaining neurons", b"remaining layers", b"val_accuracy"):
        assert title in page.tensor_proto.string_val[0]


DDP = """
import json, sys
from tests.callbacks.conftest import Foreign, SameEverywhere, two_processes
from tests.callbacks.test_gradual_pruning import counts
from tests.conftest import ToyData
from lightning_compress.callbacks import HeadPruning, LayerPruning, NeuronPruning

if __name__ == "__main__":
    data, module = ToyData(), Foreign(num_hidden_layers=3)
    callbacks = [
        HeadPruning(removed_fraction=0.5, pruning_steps=2),
        NeuronPruning(removed_fraction=0.5, pruning_steps=3),
        LayerPruning(removed_count=1), SameEverywhere(),
    ]
    trainer = two_processes(sys.argv[1], max_epochs=3, callbacks=callbacks)
    trainer.fit(module, data)
    left = [counts(module.net, kind) for kind in ("heads", "neurons")]
    with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
        json.dump(left, file)
"""


@pytest.mark.slow
def test_two_processes_remove_the_same_units_and_stay_equal(run_script, tmp_path):
    run_script(DDP)
    left = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert left[0] == left[1]
    heads, neurons = left[0]
    assert len(heads) == 2
    assert sum(neurons) <= 96


def test_pruning_steps_are_evenly_spread_between_warm_up_and_recovery(toy_data, quiet_trainer):
    class Sizes(L.Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.found.append(sum(counts(pl_module.model, "neurons")))

    sizes = Sizes()
    pruning = NeuronPruning(removed_count=96, pruning_steps=3, warmup=4, recovery=8, unit="steps")
    quiet_trainer(max_epochs=2, callbacks=[pruning, sizes]).fit(fine_tuning(), toy_data)
    assert sizes.found == [192] * 3 + [160] * 2 + [128] * 2 + [96] * 9


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HeadPruning(), "exactly one of removed_fraction and removed_count, not none"),
        (
            lambda: HeadPruning(removed_fraction=0.5, removed_count=3),
            "exactly one of removed_fraction and removed_count, not both",
        ),
        (
            lambda: HeadPruning(removed_fraction=1.0),
            "removed_fraction is a fraction between 0 and 1",
        ),
        (lambda: NeuronPruning(removed_count=0), "removed_count must be at least 1"),
        (
            lambda: StructuredPruning(removed_macs_fraction=math.nan),
            "removed_macs_fraction is a fraction between 0 and 1",
        ),
        (
            lambda: HeadPruning(removed_fraction=0.5, pruning_steps=0),
            "pruning_steps must be at least 1",
        ),
        (lambda: HeadPruning(removed_fraction=0.5, calibration_examples=0), "calibration_examples"),
        (lambda: HeadPruning(removed_fraction=0.5, warmup=-1), "warmup: -1"),
        (lambda: HeadPruning(removed_fraction=0.5, minimum=0), "minimum"),
        (lambda: NeuronPruning(removed_fraction=0.5, multiple=0), "multiple"),
        (lambda: LayerPruning(removed_count=0), "removed_count must be at least 1"),
        (lambda: LayerPruning(removed_count=1, score="best"), "score must be one of divergence"),
        (lambda: HeadPruning(removed_count=1, score="best"), "score must be one of magnitude"),
        (
            lambda: PostTrainingPruning(),
            "exactly one of removed_macs_fraction and removed_latency_fraction, not none",
        ),
        (
            lambda: PostTrainingPruning(removed_latency_fraction=2),
            "removed_latency_fraction is a fraction between 0 and 1",
        ),
        (
            lambda: PostTrainingPruning(removed_macs_fraction=0.5, minimum_heads=0),
            "minimum must be at least 1",
        ),
    ],
)
def test_options_out_of_range_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([HeadPruning(removed_fraction=0.9, minimum=1)], "budget cannot be met.*lower the minimum"),
        ([HeadPruning(removed_count=13)], "budget cannot be met"),
        ([PostTrainingPruning(removed_macs_fraction=0.99)], "budget cannot be met"),
        ([LayerPruning(removed_count=3)], "removed_count: the model has 3 layers"),
        (
            [HeadPruning(removed_fraction=0.5, pruning_steps=30)],
            "pruning_steps: 30 pruning steps do not fit",
        ),
        (
            [HeadPruning(removed_fraction=0.5, warmup=0.8, recovery=0.5)],
            "does not fit into the run",
        ),
    ],
)
def test_impossible_options_are_refused_before_training(
    callbacks, message, toy_data, quiet_trainer
):
    module = fine_tuning()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
    with pytest.raises(InputError, match=message):
        trainer.fit(module, toy_data)
    assert trainer.global_step == 0
    assert manifest_of(module.model) == []


def test_the_same_callback_twice_is_refused(toy_data, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[HeadPruning(removed_fraction=0.5)])
    trainer.callbacks.append(HeadPruning(removed_count=1))
    with pytest.raises(InputError, match="HeadPruning is given twice"):
        trainer.fit(fine_tuning(), toy_data)


def test_a_module_without_a_known_transformer_is_refused(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[HeadPruning(removed_fraction=0.5)])
    with pytest.raises(InputError, match="holds no Hugging Face model"):
        trainer.fit(plain_module(), loader())


def test_layers_that_share_one_block_are_refused(toy_data, quiet_trainer):
    module = fine_tuning(model_type="albert", embedding_size=16)
    trainer = quiet_trainer(max_epochs=1, callbacks=[LayerPruning(removed_count=1)])
    with pytest.raises(InputError, match="share one block"):
        trainer.fit(module, toy_data)


def test_a_run_that_ends_too_soon_warns(toy_data, quiet_trainer):
    trainer = quiet_trainer(max_epochs=2, callbacks=[HeadPruning(removed_fraction=0.5), Stop()])
    with pytest.warns(
        UserWarning, match=r"HeadPruning: the run ended .* of 5 pruning steps are done"
    ):
        trainer.fit(fine_tuning(), toy_data)


class Stop(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 4


def test_a_score_that_is_added_to_the_table_can_be_chosen(toy_data, quiet_trainer, monkeypatch):
    def by_index(model, units, calibration):
        return {one.output: torch.arange(one.count, dtype=torch.float64) for one in units}

    monkeypatch.setitem(UNIT_SCORES, "index", by_index)
    module = fine_tuning()
    pruning = HeadPruning(removed_count=3, pruning_steps=1, score="index")
    quiet_trainer(max_epochs=1, callbacks=[pruning]).fit(module, toy_data)
    (edit,) = manifest_of(module.model)
    assert edit["layers"] == {"0": [0], "1": [0], "2": [0]}


@pytest.mark.parametrize("callback", [HeadPruning, NeuronPruning, StructuredPruning, LayerPruning])
def test_the_command_line_documents_every_option(callback):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(callback, "pruning")
    text = parser.format_help()
    documented = {
        "pruning_steps": "evenly spread from the end of the warm-up",
        "warmup": "length of the dense phase at the start",
        "calibration_examples": "default: 512",
        "score": "random",
    }
    for option, words in documented.items():
        assert f"--pruning.{option}" in text
        assert words in " ".join(text.split())
