"""What a student learns from its teacher, and what the teacher has to do with it."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_summary.model_summary import summarize
from torch import Tensor

from lightning_compress.distillation import outputs
from lightning_compress.distillation import teacher as teachers
from lightning_compress.distillation.attention import Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.errors import InputError
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import load_compressed, save_compressed

from ..conftest import assert_same
from .conftest import write_tokenizer

ALL = Losses(hidden_states=HiddenStates(), relations=Relations(), embeddings=Embeddings())
BATCHES = 7  # of 16 texts, of the 112 for training


class Watch(L.Callback):
    """Keeps the weights after every step, and looks at a live teacher meanwhile."""

    def __init__(self, save_to: Path | None = None) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.save_to = save_to

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append(
            {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
        )
        if self.save_to is not None:
            trainer.save_checkpoint(self.save_to / f"batch={len(self.weights)}.ckpt")


class Asked:
    """Counts the batches that the teacher is asked about."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.real = outputs.run_with_outputs

    def __call__(self, *arguments: Any) -> Any:
        self.outputs.append(self.real(*arguments))
        return self.outputs[-1]


@pytest.fixture
def asked(monkeypatch) -> Asked:
    counting = Asked()
    monkeypatch.setattr(teachers, "run_with_outputs", counting)
    return counting


def caches(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("cache/teacher/*") if path.name[0] != "."}


def tensors(value: Any) -> Iterator[Tensor]:
    """All of them in a checkpoint."""
    if isinstance(value, Tensor):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, Tensor | dict | list | tuple):
            yield from tensors(inner) if not isinstance(inner, Tensor) else [inner]


def test_the_student_comes_closer_to_the_teacher_and_says_how(
    texts, student, quiet_trainer, tmp_path
):
    logger = CSVLogger(tmp_path, name="", version=0)
    trainer = quiet_trainer(max_epochs=6, logger=logger, log_every_n_steps=1)
    trainer.fit(student(learning_rate=1e-2), datamodule=texts())
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    # The teacher comes first, as a point, and then as a line.
    assert rows[0] == {
        "step": 0,
        "val_teacher_accuracy": 1.0,
        "val_teacher_f1": 1.0,
        "val_teacher_mcc": 1.0,
    }
    validations = [row for row in rows if "val_divergence" in row]
    assert len(validations) == 6
    assert all(row["val_teacher_accuracy"] == 1.0 for row in validations)
    assert validations[-1]["val_agreement"] == 1.0
    assert validations[-1]["val_accuracy"] == 1.0
    assert validations[-1]["val_divergence"] < 0.1 * validations[0]["val_divergence"]
    steps = [row for row in rows if "train_task" in row]
    assert len(steps) == 6 * BATCHES
    for row in steps:
        weighted = 0.1 * row["train_task"] + 0.9 * row["train_soft_targets"]
        assert row["train_loss"] == pytest.approx(weighted, rel=1e-4)
    assert steps[-1]["train_soft_targets"] < 0.1 * steps[0]["train_soft_targets"]


@pytest.mark.parametrize(
    ("train_on", "hard"), [("unlabelled", False), ("unlabelled", True), ("both", False)]
)
def test_it_learns_from_texts_that_nobody_has_labelled(
    texts, student, quiet_trainer, train_on, hard
):
    module = student(learning_rate=1e-2, losses=Losses(soft_targets=SoftTargets(hard=hard)))
    trainer = quiet_trainer(max_epochs=10, log_every_n_steps=1)
    trainer.fit(module, datamodule=texts(train_on=train_on))
    assert trainer.callback_metrics["val_accuracy"] > 0.95
    assert (trainer.callback_metrics["train_task"] == 0) == (train_on == "unlabelled")


def test_without_a_teacher_unlabelled_texts_are_refused(
    texts, student, quiet_trainer, trained_teacher
):
    for module in (
        FineTuningModule(pretrained=str(trained_teacher / "teacher")),
        student(losses=Losses(soft_targets=None)),
    ):
        with pytest.raises(InputError, match=r"data\.train_on is unlabelled.*DistillationModule"):
            quiet_trainer(max_epochs=1).fit(module, datamodule=texts(train_on="unlabelled"))


def test_the_teacher_teaches_and_is_nothing_else(
    texts, student, quiet_trainer, trained_teacher, tmp_path, asked
):
    found: list[Any] = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            teacher = pl_module._teacher.model
            assert pl_module.model.training
            assert not any(module.training for module in teacher.modules())
            assert all(weight.grad is None for weight in teacher.parameters())
            known = {id(weight) for weight in teacher.parameters()}
            groups = [one["params"] for one in optimizer.param_groups]
            for weights in (*groups, pl_module.parameters()):
                assert not known & {id(weight) for weight in weights}
            assert not known & {id(value) for value in pl_module.state_dict(keep_vars=True)}
            found.append(teacher)

    module = student(teacher_cache="never", losses=ALL)
    trainer = quiet_trainer(max_epochs=1, callbacks=[Look()])
    trainer.fit(module, datamodule=texts())
    (teacher,) = set(found)
    before = load_compressed(trained_teacher / "teacher")
    assert before.config.hidden_dropout_prob > 0
    assert_same(teacher.state_dict(), before.state_dict())
    assert all(
        not part.requires_grad
        for outputs in asked.outputs
        for part in (outputs.logits, outputs.embedding, *outputs.hidden.values())
        if part is not None
    )
    projections = sum(weight.numel() for weight in module.objective.parameters())
    own = sum(weight.numel() for weight in module.model.parameters())
    assert projections == 2 * 16 * 32
    assert summarize(module).total_parameters == own + projections
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = list(tensors(torch.load(tmp_path / "a.ckpt", weights_only=True)))
    assert sum(one.numel() for one in kept if one.dim()) == 3 * (own + projections)
    its = {value.numpy().tobytes() for value in before.state_dict().values()}
    assert not its & {one.numpy().tobytes() for one in kept}


@pytest.mark.parametrize("losses", [Losses(), Losses(embeddings=Embeddings())])
def test_the_cache_teaches_what_the_live_teacher_does_step_for_step(
    texts, student, quiet_trainer, asked, losses
):
    def fit(use: str) -> list[dict[str, Tensor]]:
        watch = Watch()
        trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=3, callbacks=[watch])
        trainer.fit(student(teacher_cache=use, losses=losses), datamodule=texts(batch_size=9))
        assert trainer.global_step == 10  # of 12 batches of 9 and one of 4 in each epoch
        return watch.weights

    live = fit("never")
    assert len(asked.outputs) == 5 + 26 + 2 * 5  # it is measured, it teaches, it is compared with
    assert {len(outputs.logits) for outputs in asked.outputs} == {9, 2, 4}
    asked.outputs.clear()
    for times in (5 + 18, 5):  # it is measured, and asked about every text once
        cached = fit("always")
        assert len(asked.outputs) == times
        asked.outputs.clear()
        assert len(cached) == len(live) == 26
        for one, other in zip(cached, live, strict=True):
            for name, value in one.items():
                assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-5), name


def test_hidden_states_are_kept_where_that_is_asked_for(texts, student, quiet_trainer, asked):
    losses = Losses(hidden_states=HiddenStates(), embeddings=Embeddings())
    last: list[Tensor] = []
    for use, times in (("auto", 3 + BATCHES + 3), ("always", 3 + BATCHES + 3), ("always", 3)):
        trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
        trainer.fit(student(teacher_cache=use, losses=losses), datamodule=texts())
        assert len(asked.outputs) == times
        asked.outputs.clear()
        last.append(trainer.callback_metrics["train_hidden_states"])
    assert last[1] == last[2]
    assert last[1] == pytest.approx(float(last[0]), rel=1e-3)  # they are kept in half precision


@pytest.mark.parametrize(
    ("use", "losses"),
    [("always", Losses(embeddings=Embeddings())), ("never", ALL)],
    ids=["cached", "live"],
)
def test_resumed_in_the_middle_of_an_epoch_it_equals_the_uninterrupted_run(
    texts, student, quiet_trainer, tmp_path, use, losses
):
    def fit(ckpt=None, seed=0):
        watch = Watch(None if ckpt else tmp_path)
        trainer = quiet_trainer(max_epochs=2, callbacks=[watch])
        module = student(seed, teacher_cache=use, losses=losses)
        trainer.fit(module, datamodule=texts(), ckpt_path=ckpt, weights_only=True)
        return watch.weights[-1], trainer.optimizers[0].state_dict()["state"]

    weights, moments = fit()
    for batch in (3, BATCHES, BATCHES + 4):
        again, its = fit(tmp_path / f"batch={batch}.ckpt", seed=7)
        assert_same(again, weights)
        assert_same(its, moments)


def test_whatever_the_answers_depend_on_makes_another_cache(
    texts, student, quiet_trainer, trained_teacher, tmp_path
):
    other = load_compressed(trained_teacher / "teacher")
    with torch.no_grad():
        other.get_parameter("classifier.bias").add_(0.01)
    save_compressed(other, tmp_path / "other")
    same = load_compressed(trained_teacher / "teacher")
    save_compressed(same, tmp_path / "same")
    # The last of the words that the teacher was trained with is unknown to this one.
    tokenizer = write_tokenizer(tmp_path / "tokenizer", [f"w{i}" for i in range(94)] + ["x"])
    save_compressed(same, tmp_path / "other_tokens", texts_tokenizer(tokenizer))
    runs: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
        (1, {}, {}),
        (1, {}, {}),
        (1, {"teacher": str(tmp_path / "same")}, {}),  # its name is nothing
        (1, {"learning_rate": 1e-2}, {"batch_size": 8}),
        (2, {"teacher": str(tmp_path / "other")}, {}),
        (3, {"teacher": str(tmp_path / "other_tokens")}, {}),
        (4, {}, {"limits": {"train": 100}}),
        (5, {}, {"max_length": 8}),
        (5, {}, {"seed": 1}),  # the same texts, carved otherwise
        (6, {}, {"train_on": "both"}),
        (7, {"losses": Losses(embeddings=Embeddings())}, {}),
        (7, {"losses": Losses(soft_targets=SoftTargets(temperature=(4.0, 1.0)))}, {}),
    ]
    for count, options, of_data in runs:
        trainer = quiet_trainer(max_steps=1)
        module = student(teacher_cache="always", **options)
        trainer.fit(module, datamodule=texts(**of_data))
        assert len(caches(tmp_path)) == count, (options, of_data)


def texts_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_damaged_cache_is_made_anew_and_says_so(texts, student, quiet_trainer, tmp_path, caplog):
    last: list[dict[str, Tensor]] = []
    for _ in range(2):
        watch = Watch()
        trainer = quiet_trainer(max_epochs=1, callbacks=[watch])
        trainer.fit(student(), datamodule=texts())
        last.append(watch.weights[-1])
        (folder,) = caches(tmp_path)
        rows = tmp_path / "cache" / "teacher" / folder / "rows.arrow"
        content = bytearray(rows.read_bytes())
        content[len(content) // 2] ^= 1
        rows.write_bytes(content)
    assert_same(last[0], last[1])
    (message,) = [one for one in caplog.messages if "teacher's cache" in one]
    assert "is written again: rows.arrow is damaged" in message


@pytest.mark.parametrize(
    ("cached", "options", "of_trainer"),
    [
        (True, {}, {"max_epochs": 1}),
        (True, {"losses": Losses(embeddings=Embeddings())}, {"max_steps": 7}),
        (True, {}, {"max_epochs": 3, "limit_train_batches": 0.5}),
        (True, {"losses": Losses(soft_targets=SoftTargets(temperature=(4.0, 1.0)))},
         {"max_epochs": 1}),
        (False, {}, {"max_steps": 6}),
        (False, {}, {"max_epochs": 1, "limit_train_batches": 3}),
        (False, {}, {"fast_dev_run": True}),
        (False, {"teacher_cache": "never"}, {"max_epochs": 1}),
        (False, {"losses": Losses(hidden_states=HiddenStates())}, {"max_epochs": 1}),
        (False, {"losses": Losses(relations=Relations())}, {"max_epochs": 1}),
    ],
)  # fmt: skip
def test_auto_keeps_what_is_worth_keeping(
    texts, student, quiet_trainer, tmp_path, cached, options, of_trainer
):
    trainer = quiet_trainer(**of_trainer)
    trainer.fit(student(**options), datamodule=texts())
    assert bool(caches(tmp_path)) == cached
    assert trainer.global_step > 0


def test_a_short_run_reads_what_a_longer_one_has_kept(texts, student, quiet_trainer, asked):
    quiet_trainer(max_epochs=1).fit(student(), datamodule=texts())
    asked.outputs.clear()
    quiet_trainer(max_steps=2).fit(student(), datamodule=texts())
    assert len(asked.outputs) == 3  # it is measured


def test_validation_may_come_late_or_never(
    texts, student, quiet_trainer, trained_teacher, tmp_path
):
    options: dict[str, Any]
    for options in (
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        {"limit_val_batches": 0},
        {"limit_val_batches": 1},
    ):
        for use in ("always", "never"):
            trainer = quiet_trainer(max_epochs=2, **options)
            trainer.fit(student(teacher_cache=use), datamodule=texts())
            logged = "val_teacher_accuracy" in trainer.callback_metrics
            assert logged == (options.get("limit_val_batches") != 0)


def test_it_can_be_fitted_again(texts, student, quiet_trainer):
    module = student()
    for _ in range(2):
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(module, datamodule=texts())
        assert trainer.global_step == BATCHES
    results = quiet_trainer().validate(module, datamodule=texts(), verbose=False)
    assert "val_divergence" in results[0]


def test_the_checkpoint_alone_is_the_student_alone(texts, student, quiet_trainer, tmp_path):
    module = student(teacher_cache="never", losses=ALL)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(module, datamodule=texts())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.hparams["teacher"] is None
    assert {name.split(".")[0] for name in loaded.state_dict()} == {"model"}
    assert_same(loaded.model.state_dict(), module.model.state_dict())
    one, other = (
        quiet_trainer().validate(each, datamodule=texts(), verbose=False)[0]
        for each in (loaded, module)
    )
    assert one["val_loss"] == other["val_loss"]
