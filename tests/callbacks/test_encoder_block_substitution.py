"""Compact blocks that take the place of layers while a model trains."""

import copy
import json
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_compress.callbacks import (
    CompressionBenchmark,
    EncoderBlockSubstitution,
    HeadPruning,
    IterativeMagnitudePruning,
    LayerPruning,
    NeuronPruning,
    StructuredPruning,
)
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, structure_of, units_of
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import substitute_layers_, switches_of

from ..conftest import SaveEveryStep, ToyData, assert_same
from .conftest import CONFIG, Foreign, fit_and_report, model_of, state

QUICK: dict[str, Any] = {"distil_steps": 3, "calibration_examples": 16}


def substitution(**options):
    return EncoderBlockSubstitution(**{**QUICK, **options})


def fine_tuning(seed=0, **changes):
    torch.manual_seed(seed)
    return FineTuningModule(config={**CONFIG, **changes}, learning_rate=1e-3)


def heads(module):
    return [one.count for one in units_of(model_of(module), "heads")]


def groups_of(module):
    return [edit["groups"] for edit in manifest_of(model_of(module)) if "groups" in edit]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with a model that has learned the toy data."""
    folder = tmp_path_factory.mktemp("taught")
    torch.manual_seed(0)
    module = FineTuningModule(config=CONFIG, learning_rate=3e-3)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=12, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, ToyData())
    assert trainer.callback_metrics["val_accuracy"] > 0.95
    return save_compressed(module.model, folder / "model")


# --- what comes of it


def test_it_stays_near_the_dense_model_and_nothing_old_is_left(
    taught, toy_data, quiet_trainer, tmp_path
):
    module = FineTuningModule(pretrained=str(taught), learning_rate=1e-3)
    callback = EncoderBlockSubstitution(num_groups=2, width_fraction=0.5, distil_steps=30)
    trainer = quiet_trainer(max_epochs=6, callbacks=[callback])
    trainer.fit(module, toy_data)
    assert callback.target_reached
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert groups_of(module) == [[[1], [2]]]
    assert heads(module) == [4, 2, 2, 4]
    assert not switches_of(module.model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert names == set(module.state_dict())
    assert not any(".predecessor." in name or ".successor." in name for name in names)
    parameters = list(module.model.parameters())
    trained = [w for group in trainer.optimizers[0].param_groups for w in group["params"]]
    assert {id(weight) for weight in trained} == {id(weight) for weight in parameters}
    assert {id(weight) for weight in trainer.optimizers[0].state} == {id(w) for w in parameters}
    saved = checkpoint["optimizer_states"][0]
    assert len(saved["state"]) == sum(len(g["params"]) for g in saved["param_groups"])
    assert len(saved["state"]) == len(parameters)
    dense = load_compressed(taught)
    assert sum(w.numel() for w in parameters) < sum(w.numel() for w in dense.parameters())
    loaded = load_compressed(save_compressed(module.model, tmp_path / "m"))
    assert loaded.state_dict().keys() == module.model.state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        {"distil_steps": 0},
        {"replacement_fraction": 0},
        {"initialization": "random", "distil_steps": 0, "replacement_fraction": 0},
        {"initialization": "zero"},
        {"initialization": "components"},
        {"initialization": "least_squares", "replacement_fraction": 1.0},
        {"selection": "even", "num_groups": 2},
        {"groups": [[0], [2, 3]], "depth": 2, "width": 12, "heads": 3},
        {"layers_per_group": 3, "keep_ends": False, "initial_probability": 0.0},
    ],
)
def test_every_phase_can_be_left_out(options, toy_data, quiet_trainer):
    module, callback = fine_tuning(), substitution(**options)
    trainer = quiet_trainer(max_steps=6, callbacks=[callback])
    trainer.fit(module, toy_data)
    assert callback.target_reached
    assert not switches_of(module.model)
    (groups,) = groups_of(module)
    assert groups == options.get("groups", groups)
    assert len(groups) == options.get("num_groups", len(groups))
    assert all(len(group) == options.get("layers_per_group", len(group)) for group in groups)
    gone = sum(len(group) for group in groups)
    assert len(structure_of(module.model).layers) == 4 - gone + len(groups)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "gpt2"])
def test_every_family(kind, toy_data, quiet_trainer):
    torch.manual_seed(0)
    sizes = {**CONFIG, "max_position_embeddings": 20, "pad_token_id": 0}
    known = AutoConfig.for_model(kind)
    config = {name: value for name, value in sizes.items() if hasattr(known, name)}
    config["model_type"] = kind
    module = FineTuningModule(config=config)
    trainer = quiet_trainer(max_steps=4, callbacks=[substitution(num_groups=2, width_fraction=0.5)])
    trainer.fit(module, toy_data)
    assert len(structure_of(module.model).layers) == len(structure_of(module.model).blocks)
    assert len(structure_of(module.model).projections) == 4


class Ways(L.Callback):
    """Which way the batches go, and the steps that there are no two ways any more."""

    def __init__(self):
        self.ways: list[list[bool]] = []
        self.taken_over: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.ways.append([switch.runs_successor for switch in switches_of(pl_module)])

    def on_train_batch_end(self, trainer, pl_module, *_):
        if not switches_of(pl_module):
            self.taken_over.append(trainer.global_step)


class Watch(Ways):
    """What is seen of the old layers and the compact blocks besides."""

    def __init__(self):
        super().__init__()
        self.validated: list[bool] = []
        self.old: list[dict[str, torch.Tensor]] = []
        self.modes: set[bool] = set()

    def on_train_batch_start(self, trainer, pl_module, *_):
        super().on_train_batch_start(trainer, pl_module)
        switches = switches_of(pl_module)
        parts = [part for switch in switches for part in switch.modules()]
        self.modes |= {part.training for part in parts if isinstance(part, nn.Dropout)}

    def on_after_backward(self, trainer, pl_module):
        for switch in switches_of(pl_module):
            learns = any(weight.grad is not None for weight in switch.successor.parameters())
            assert learns is switch.runs_successor
            assert all(weight.grad is None for weight in switch.predecessor.parameters())

    def on_train_batch_end(self, trainer, pl_module, *_):
        super().on_train_batch_end(trainer, pl_module)
        olds = [switch.predecessor.state_dict() for switch in switches_of(pl_module)]
        self.old.append(copy.deepcopy(olds[0]) if olds else {})

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated += [switch.runs_successor for switch in switches_of(pl_module)]


def test_old_layers_take_turns_without_learning_and_validation_knows_none(toy_data, quiet_trainer):
    module, watch = fine_tuning(), Watch()
    callback = substitution(num_groups=2, initial_probability=0.4, replacement_fraction=0.5)
    trainer = quiet_trainer(max_epochs=4, callbacks=[callback, watch])
    trainer.fit(module, toy_data)
    replaced = [way for ways in watch.ways[:16] for way in ways]
    assert len(replaced) == 32
    assert 10 < sum(replaced) < 31
    assert watch.ways[16:] == [[]] * 16
    assert watch.taken_over[0] == 16
    assert watch.validated
    assert all(watch.validated)
    assert watch.modes == {
        True
    }  # with dropout, although selection and block distillation ran without
    for old in watch.old[1:15]:
        assert all(torch.equal(value, watch.old[0][name]) for name, value in old.items())


def test_it_draws_with_the_probability_of_the_step(toy_data, quiet_trainer):
    watch = Watch()
    always = substitution(groups=[[1]], initial_probability=1.0, replacement_fraction=0.9)
    quiet_trainer(max_epochs=1, callbacks=[always, watch]).fit(fine_tuning(), toy_data)
    assert watch.ways == [[True]] * 7 + [[]]


def test_gradients_may_be_accumulated(toy_data, quiet_trainer, tmp_path):
    def fit(ckpt=None, seed=0):
        watch, module = Ways(), Foreign(seed)
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        trainer = quiet_trainer(
            max_epochs=4, accumulate_grad_batches=2, log_every_n_steps=0,
            callbacks=[substitution(groups=[[1, 2]]), watch, save],
        )  # fmt: skip
        trainer.fit(module, toy_data, ckpt_path=ckpt, weights_only=True)
        return watch, state(trainer, module)

    watch, whole = fit()
    assert watch.taken_over[0] == 8  # of 16 steps, of two batches each
    assert watch.ways.index([]) == 16
    for step in (4, 8, 12):
        assert_same(fit(tmp_path / f"step={step}.ckpt", seed=7)[1], whole)


class Rates(L.Callback):
    def __init__(self):
        self.rates = []
        self.groups = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.groups = [
            (group["weight_decay"], {weight.ndim for weight in group["params"]})
            for group in optimizer.param_groups
        ]


def test_the_learning_rate_runs_as_without_it_and_biases_do_not_decay(toy_data, quiet_trainer):
    found = []
    for callbacks in ([], [substitution(num_groups=2)]):
        rates = Rates()
        quiet_trainer(max_epochs=2, callbacks=[*callbacks, rates]).fit(fine_tuning(), toy_data)
        found.append(rates.rates)
        assert rates.groups == [(0.01, {2}), (0.0, {1})]
    assert len(found[0]) == 16
    assert found[0] == found[1]


def test_the_random_numbers_of_the_training_stay_as_they_were(toy_data, quiet_trainer):
    found = []
    for callbacks in ([], [substitution(distil_steps=7)]):

        class Look(L.Callback):
            def on_train_batch_start(self, *_):
                found.append(torch.random.get_rng_state())

        trainer = quiet_trainer(max_steps=1, callbacks=[*callbacks, Look()])
        trainer.fit(fine_tuning(), toy_data)
    assert torch.equal(found[0], found[1])


# --- going on


@pytest.mark.parametrize("build", [pytest.param(fine_tuning, marks=pytest.mark.slow), Foreign])
def test_a_resumed_run_equals_the_uninterrupted_bit_for_bit(
    build, toy_data, quiet_trainer, tmp_path, monkeypatch
):
    def fit(ckpt=None, seed=0):
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        module = build(seed)
        callback = substitution(num_groups=2, depth=2, width_fraction=0.5, initial_probability=0.5)
        trainer = quiet_trainer(max_epochs=4, callbacks=[callback, save])
        trainer.fit(module, toy_data, ckpt_path=ckpt, weights_only=True)
        assert callback.target_reached
        return state(trainer, module)

    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    whole = fit()
    # Whatever is seeded when it goes on.
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    for step in (8, 16, 24):  # while they take turns, right after the takeover, and later
        assert_same(fit(tmp_path / f"step={step}.ckpt", seed=7), whole)


def test_resume_in_the_middle_of_an_epoch(text_files, quiet_trainer, tmp_path):
    def fit(ckpt=None, seed=0):
        data = TextClassificationDataModule(
            path=str(text_files), tokenizer=str(text_files / "tokenizer"), max_length=16,
            batch_size=8, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        module = fine_tuning(seed)
        trainer = quiet_trainer(max_epochs=2, callbacks=[substitution(groups=[[1, 2]]), save])
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
        return trainer, state(trainer, module)

    trainer, whole = fit()
    takeover = trainer.global_step // 2
    for step in (1, takeover - 1, takeover, takeover + 1):
        assert_same(fit(tmp_path / f"step={step}.ckpt", seed=7)[1], whole)


NEW_PROCESS = """
import sys
import lightning as L, torch
from tests.callbacks.conftest import Foreign, state
from tests.callbacks.test_encoder_block_substitution import substitution
from tests.conftest import ToyData

if __name__ == "__main__":
    for checkpoint in sys.argv[2:]:
        module = Foreign(seed=7)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=4, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
            callbacks=[substitution(num_groups=2)],
        )
        trainer.fit(module, ToyData(), ckpt_path=checkpoint, weights_only=True)
        torch.save(state(trainer, module), checkpoint + ".end")
"""


@pytest.mark.slow
def test_a_new_process_goes_on_bit_for_bit(toy_data, quiet_trainer, run_script, tmp_path):
    module = Foreign()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there
    trainer = quiet_trainer(
        max_epochs=4, callbacks=[substitution(num_groups=2), SaveEveryStep(tmp_path)]
    )
    trainer.fit(module, toy_data)
    torch.set_num_threads(threads)
    checkpoints = [tmp_path / f"step={step}.ckpt" for step in (8, 16)]
    run_script(NEW_PROCESS, *checkpoints)
    for checkpoint in checkpoints:
        assert_same(torch.load(f"{checkpoint}.end"), state(trainer, module))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_any_module_tests_its_best_checkpoint_which_is_one_after_the_takeover(
    toy_data, quiet_trainer, tmp_path
):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max", save_top_k=-1)
    module = Foreign()
    trainer = quiet_trainer(
        max_epochs=4, enable_checkpointing=True, callbacks=[substitution(num_groups=2), best]
    )
    trainer.fit(module, toy_data)
    assert best.best_model_path.endswith("epoch=1.ckpt")  # the takeover ends that epoch
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    tested = trainer.callback_metrics["test"]
    # Another one takes the shapes of the checkpoint, also of one with old layers in it.
    for epoch, beside in ((1, 0), (0, 2)):
        other = Foreign(seed=7)
        tester = quiet_trainer(callbacks=[substitution()])
        checkpoint = tmp_path / f"epoch={epoch}.ckpt"
        tester.test(other, toy_data, ckpt_path=checkpoint, verbose=False, weights_only=True)
        assert len(switches_of(other)) == beside
        assert bool(tester.callback_metrics["test"] == tested) is (epoch == 1)


def test_a_checkpoint_alone_gives_the_model_back(toy_data, quiet_trainer, tmp_path):
    module = fine_tuning()
    trainer = quiet_trainer(
        max_epochs=2, callbacks=[substitution(layers_per_group=2, depth=2), SaveEveryStep(tmp_path)]
    )
    trainer.fit(module, toy_data)
    batch = next(iter(toy_data.test_dataloader()))
    loaded = FineTuningModule.load_from_checkpoint(tmp_path / "step=16.ckpt", weights_only=True)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(batch), module.eval()(batch))
    assert manifest_of(loaded.model) == manifest_of(module.model)
    beside = FineTuningModule.load_from_checkpoint(tmp_path / "step=4.ckpt", weights_only=True)
    assert len(switches_of(beside.model)) == 1
    with torch.inference_mode():
        beside.eval()(batch)


def test_a_dense_run_goes_on_with_it(toy_data, quiet_trainer, tmp_path):
    module = fine_tuning()
    save = SaveEveryStep(tmp_path)
    quiet_trainer(max_epochs=4, callbacks=[save]).fit(module, toy_data)
    rates = Rates()
    look: dict[str, int] = {}

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            optimizer = trainer.optimizers[0]
            look.setdefault("moments", len(optimizer.state))
            look.setdefault("step", trainer.global_step)

    module = fine_tuning(seed=7)
    callback = substitution(groups=[[1]], replacement_fraction=0.75)
    trainer = quiet_trainer(max_epochs=4, callbacks=[callback, rates, Look()])
    trainer.fit(module, toy_data, ckpt_path=tmp_path / "step=16.ckpt", weights_only=True)
    assert callback.target_reached
    assert look["step"] == 16
    # What the optimizer knows of all but the old layer, and the schedule where it was.
    dense = dict(fine_tuning_model(CONFIG).named_parameters())
    assert look["moments"] == len([name for name in dense if ".layer.1." not in name])
    assert len(rates.rates) == 16
    assert rates.rates == sorted(rates.rates, reverse=True)
    assert rates.rates[-1] < 1e-4


def fine_tuning_model(config):
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))


# --- together with others


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_pruning_may_share_the_run(first, toy_data, quiet_trainer, tmp_path):
    def fit(ckpt=None, seed=0):
        module = fine_tuning(seed)
        others = [
            StructuredPruning(removed_macs_fraction=0.7, pruning_steps=2, calibration_examples=16),
            IterativeMagnitudePruning(sparsity=0.6, scope="layer"),
        ]
        own = [substitution(groups=[[1], [2]], width_fraction=0.5, replacement_fraction=0.3)]
        callbacks = [*own, *others] if first else [*others, *own]
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        trainer = quiet_trainer(max_epochs=4, callbacks=[*callbacks, save])
        trainer.fit(module, toy_data, ckpt_path=ckpt, weights_only=True)
        return trainer, module

    trainer, module = fit()
    assert not switches_of(module.model)
    masks = masks_of(module.model)
    inside = {f"{name}.weight" for name in structure_of(module.model).linear_names()}
    assert set(masks) == inside
    assert "bert.encoder.layer.1.down.weight" in masks
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.4, abs=0.01)
    for name, mask in masks.items():
        assert (module.model.get_parameter(name)[~mask] == 0).all()
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    for step in (8, 16, 24):
        again, resumed = fit(tmp_path / f"step={step}.ckpt", seed=7)
        assert_same(state(again, resumed), state(trainer, module))


@pytest.mark.parametrize(
    "callback",
    [
        lambda: HeadPruning(
            removed_fraction=0.3, pruning_steps=2, minimum=1, calibration_examples=16
        ),
        lambda: NeuronPruning(
            removed_fraction=0.5, pruning_steps=2, refit=True, calibration_examples=16
        ),
        lambda: LayerPruning(removed_count=2, pruning_steps=2, calibration_examples=16),
        lambda: IterativeMagnitudePruning(sparsity=0.5),
        lambda: IterativeMagnitudePruning(pattern="2:4"),
        lambda: substitution(groups=[[3]], width=12),
    ],
    ids=["heads", "neurons", "layers", "magnitude", "2:4", "again"],
)
def test_a_substituted_model_is_compressed_further_in_a_later_run(
    callback, toy_data, quiet_trainer, tmp_path
):
    first = fine_tuning()
    quiet_trainer(max_steps=4, callbacks=[substitution(groups=[[1], [2]])]).fit(first, toy_data)
    folder = save_compressed(first.model, tmp_path / "m")
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path, name="run", version=0)
    module = FineTuningModule(pretrained=str(folder))
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback()], logger=logger)
    trainer.fit(module, toy_data)
    assert len(manifest_of(module.model)) > 1
    loaded = load_compressed(save_compressed(module.model, tmp_path / "again"))
    batch = next(iter(toy_data.test_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, module.model.eval()(**inputs).logits)


def test_the_report_compares_with_the_dense_model_and_the_folder_loads(
    toy_data, quiet_trainer, tmp_path
):
    module = fine_tuning()
    _, small = fit_and_report(module, substitution(num_groups=2), toy_data, quiet_trainer)
    assert small["techniques"] == ["encoder_block_substitution"]
    loaded = load_compressed(tmp_path / "model")
    assert loaded.state_dict().keys() == module.model.state_dict().keys()
    assert len(structure_of(load_compressed(tmp_path / "dense")).layers) == 4


class Stop(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 4


def test_a_run_that_ends_too_soon_says_so_and_leaves_what_can_be_used(
    toy_data, quiet_trainer, tmp_path
):
    module = fine_tuning()
    trainer = quiet_trainer(max_epochs=2, callbacks=[substitution(), Stop()])
    with pytest.warns(UserWarning, match="ended at step 4, before its target at step 8"):
        trainer.fit(module, toy_data)
    loaded = load_compressed(save_compressed(module.model, tmp_path / "m"))
    assert not any(".predecessor." in name for name in loaded.state_dict())


def test_a_run_without_an_end_may_replace_at_once(toy_data, quiet_trainer):
    options = {"max_epochs": -1, "max_time": "00:00:00:05"}
    module = Foreign()
    trainer = quiet_trainer(**options, callbacks=[substitution()])
    with pytest.raises(
        InputError, match="replacement_fraction is a fraction of the run, and this run has no"
    ):
        trainer.fit(module, toy_data)
    assert manifest_of(module.net) == []
    trainer = quiet_trainer(**options, callbacks=[substitution(replacement_fraction=0), Stop()])
    trainer.fit(module, toy_data)
    assert len(structure_of(module.net).projections) == 2


def test_a_trial_run(toy_data, quiet_trainer):
    module = fine_tuning()
    quiet_trainer(fast_dev_run=True, callbacks=[substitution()]).fit(module, toy_data)
    assert groups_of(module)


def test_tensorboard_shows_it(toy_data, quiet_trainer, tmp_path):
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path, name="run", version=0)
    callbacks = [
        substitution(groups=[[1], [2, 3]], distil_steps=5, initial_probability=0.2),
        CompressionBenchmark(precisions=["fp32"]),
    ]
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, logger=logger, log_every_n_steps=1)
    trainer.fit(fine_tuning(), toy_data)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0}).Reload()
    assert len(events.Images("substituted layers")) == 1
    for group in ("layers 1-1", "layers 2-3"):
        errors = events.Scalars(f"block distillation error/{group}")
        assert [event.step for event in errors] == list(range(5))
        assert all(event.value > 0 for event in errors)
        (kept,) = events.Scalars(f"explained variance/{group}")
        assert 0 < kept.value <= 1
    chances = [event.value for event in events.Scalars("replacement_probability")]
    assert chances == pytest.approx([0.2 + 0.8 * step / 8 for step in range(8)])
    (page,) = events.Tensors("custom_scalars__config__")
    for title in (b"replacement", b"block distillation error", b"val_accuracy"):
        assert title in page.tensor_proto.string_val[0]


DDP = """
import json, sys
from tests.callbacks.conftest import Foreign, SameEverywhere, two_processes
from tests.callbacks.test_encoder_block_substitution import groups_of, substitution
from tests.conftest import ToyData
from lightning_compress.callbacks import HeadPruning
from lightning_compress.substitution.edit import switches_of

class Watch(SameEverywhere):
    ways = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.ways.append([switch.runs_successor for switch in switches_of(pl_module)])

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        finds = trainer.strategy._ddp_kwargs["find_unused_parameters"]
        assert finds == bool(switches_of(pl_module)), trainer.global_step

if __name__ == "__main__":
    data, module = ToyData(), Foreign()
    watch = Watch()
    trainer = two_processes(sys.argv[1], max_epochs=4, callbacks=[
        substitution(num_groups=2, initial_probability=0.2),
        HeadPruning(removed_count=1, pruning_steps=1, warmup=0.7, recovery=0.1), watch,
    ])
    trainer.fit(module, data)
    with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
        json.dump({"groups": groups_of(module), "ways": watch.ways}, file)
"""


@pytest.mark.slow
def test_two_processes_replace_the_same_and_stay_the_same(run_script, tmp_path):
    run_script(DDP)
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["groups"] == [[[1], [2]]]
    ways = one["ways"]
    assert ways[8:] == [[]] * 8
    assert [False, False] in ways  # and so some parameters get no gradient at all


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1"),
        ({"layers_per_group": 0}, "layers_per_group must be at least 1"),
        ({"depth": 0}, "depth must be a number of at least 1"),
        ({"replacement_fraction": 1.5}, "replacement_fraction lies between 0 and 1, not 1.5"),
        ({"initial_probability": -0.1}, "initial_probability lies between 0 and 1"),
        ({"distil_steps": -1}, "distil_steps must be a number of at least 0"),
        ({"calibration_examples": 0}, "calibration_examples must be a number of at least 1"),
        ({"distil_learning_rate": 0}, "distil_learning_rate must be a number of at least"),
        ({"width_fraction": 0.0}, r"width_fraction lies in \(0, 1\], not 0.0"),
        ({"width_fraction": 1.5}, "width_fraction lies in"),
        (
            {"initialization": "nothing"},
            "initialization must be one of random, .*, not 'nothing'",
        ),
        ({"selection": "dice"}, "selection must be one of divergence, even, not 'dice'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        EncoderBlockSubstitution(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [[1], [2, 1]]}, "layer 1 of .* is given twice"),
        ({"groups": [[4]]}, "no layer 4: they are counted from 0 to 3"),
        ({"groups": [[0, 2]]}, r"the layers \[0, 2\] do not follow one another"),
        ({"groups": []}, "there is no layer to substitute"),
        ({"width": 16, "heads": 3}, "width is 16, which is no multiple of 3 heads"),
        ({"width": 48}, "width is 48: it lies between 1 and the model's, 32"),
        ({"num_groups": 3}, "3 groups of 1 cannot be chosen from 4 layers, of which"),
        ({"num_groups": 4, "keep_ends": False}, "4 groups of 1 are all 4 layers"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(options, message, toy_data, quiet_trainer):
    module = fine_tuning()
    trainer = quiet_trainer(max_epochs=1, callbacks=[substitution(**options)])
    with pytest.raises(InputError, match=message):
        trainer.fit(module, toy_data)
    assert trainer.global_step == 0
    assert manifest_of(module.model) == []
    assert not switches_of(module.model)


def test_layers_that_are_compact_already(toy_data, quiet_trainer, tmp_path):
    model = fine_tuning_model(CONFIG)
    substitute_layers_(model, [[1]], width=8)
    folder = save_compressed(model, tmp_path / "m")
    for options, message in (
        ({"groups": [[1]]}, "layer 1 of .* is a compact block already"),
        ({}, "some layers of .* are compact blocks already: name in groups"),
    ):
        trainer = quiet_trainer(max_epochs=1, callbacks=[substitution(**options)])
        with pytest.raises(InputError, match=message):
            trainer.fit(FineTuningModule(pretrained=str(folder)), toy_data)


@pytest.mark.parametrize("family", ["albert", "llama"])
def test_families_whose_layers_cannot_be_narrow(family, toy_data, quiet_trainer):
    more = {"num_key_value_heads": 4} if family == "llama" else {}
    module = fine_tuning(model_type=family, pad_token_id=0, **more)
    trainer = quiet_trainer(max_epochs=1, callbacks=[substitution()])
    with pytest.raises(InputError, match="cannot be made narrow; those of these families can"):
        trainer.fit(module, toy_data)


def test_no_examples_to_look_at(toy_data, quiet_trainer):
    for row in toy_data.rows:
        row["labels"] = torch.tensor(-100)
    module = fine_tuning()
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[substitution()])
    with pytest.raises(InputError, match=r"calibration_examples: no training example has a label"):
        trainer.fit(module, toy_data)
    assert trainer.global_step == 0
    assert manifest_of(module.model) == []
    assert not switches_of(module.model)


def test_the_same_callback_twice_is_refused(toy_data, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[substitution()])
    trainer.callbacks.append(substitution(num_groups=2))
    with pytest.raises(InputError, match="EncoderBlockSubstitution is given twice; keep one"):
        trainer.fit(fine_tuning(), toy_data)


def test_a_module_without_a_transformer_is_refused(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[substitution()])
    with pytest.raises(InputError, match="PlainModule holds no Hugging Face model, whose layers"):
        trainer.fit(plain_module(), loader())


def test_dropout_is_there_while_training_and_not_before(toy_data, quiet_trainer):
    module = fine_tuning()
    quiet_trainer(max_steps=2, callbacks=[substitution()]).fit(module, toy_data)
    compact = module.model.get_submodule(structure_of(module.model).layers[1])
    parts = [one for one in compact.modules() if isinstance(one, nn.Dropout)]
    assert parts
    assert all(one.training for one in parts)
