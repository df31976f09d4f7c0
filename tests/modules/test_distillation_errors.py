"""Errors raised before the first step of distillation, and teachers with another tokenizer."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.distillation import outputs
from lightning_compress.distillation import teacher as teachers
from lightning_compress.distillation.attention import AttentionMaps, Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses, TaskLoss
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_
from lightning_compress.modules import DistillationModule
from lightning_compress.saving import load_compressed, save_compressed

from .conftest import GPT2, STUDENT, TEACHER, WORDS, lines, text_data, trained, write_tokenizer

NAMES = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


def random_model(folder: Path, **changes: Any) -> str:
    """A model that has learned nothing, without a tokenizer."""
    fields: dict[str, Any] = {**TEACHER, "vocab_size": 100, "pad_token_id": 0, **NAMES, **changes}
    auto: Any = AutoModelForSequenceClassification
    if fields["model_type"] == "gpt2":
        auto = AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(AutoConfig.for_model(**fields)).save_pretrained(folder)
    return str(folder)


def refuse(module, trainer, data, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        trainer.fit(module, datamodule=data)
    for part in parts:
        assert part in str(caught.value)
    assert trainer.global_step == 0


THREE = dict(enumerate("abc"))
DEFAULT = {0: "LABEL_0", 1: "LABEL_1"}
SWAPPED = {0: "good", 1: "bad"}
OTHERS = {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vocab_size": 50}, ["knows 50 tokens", "tokenizer 100", "into its folder"]),
        ({"max_position_embeddings": 16}, ["data.max_length is 24", "at most 16", "lower it"]),
        ({}, ["no better than chance", "38 validation examples", "fine-tune it"]),
    ],
)
def test_a_teacher_that_does_not_suit_is_refused(
    texts, student, quiet_trainer, tmp_path, changes, parts
):
    teacher = random_model(tmp_path / "teacher", **changes)
    parts = [*parts] if "max_position_embeddings" in changes else ["model.teacher", *parts]
    refuse(student(teacher=teacher), quiet_trainer(max_epochs=1), texts(), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"id2label": THREE}, ["'bad', 'good', and the model knows only 'a', 'b', 'c'"]),
        ({"id2label": OTHERS}, ["'bad', 'good', and the model knows only 'no', 'yes'"]),
        ({"id2label": DEFAULT}, ["outputs are only numbered, from 0 to 1"]),
        (
            {"id2label": {0: "x"}, "problem_type": "regression"},
            ["not every data.label is a number"],
        ),
        ({"problem_type": "multi_label_classification"}, ["no lists of labels"]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"every_nth_layer": 2}])
def test_a_teacher_of_other_labels_than_the_data_is_refused(
    texts, student, quiet_trainer, tmp_path, changes, parts, options
):
    teacher = random_model(tmp_path / "teacher", **changes)
    module = student(teacher=teacher, **options)
    refuse(module, quiet_trainer(max_epochs=1), texts(), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"id2label": THREE}, ["3 labels", "the student 2", "fine-tune the teacher"]),
        ({"id2label": SWAPPED}, ["good, bad", "bad, good", "same order"]),
        ({"id2label": OTHERS}, ["no, yes", "bad, good", "same order"]),
        ({"problem_type": "multi_label_classification"}, ["multi label", "fine-tune the teacher"]),
    ],
)
def test_a_teacher_of_other_labels_than_a_trained_student_is_refused(
    texts, student, quiet_trainer, tmp_path, changes, parts
):
    teacher = random_model(tmp_path / "teacher", **changes)
    trained_student = random_model(tmp_path / "student")
    module = student(teacher=teacher, pretrained=trained_student, config=None)
    refuse(module, quiet_trainer(max_epochs=1), texts(), "model.teacher", *parts)


@pytest.mark.parametrize("options", [{}, {"every_nth_layer": 2}])
def test_a_student_takes_the_labels_of_its_teacher_in_their_order(
    texts, student, quiet_trainer, trained_teacher, tmp_path, options
):
    model = load_compressed(trained_teacher / "teacher")
    with torch.no_grad():  # a teacher whose class 0 is "Good"
        for weight in model.get_submodule("classifier").parameters():
            weight.copy_(weight.flip(0))
    model.config.id2label = {0: "Good", 1: "BAD"}
    save_compressed(model, tmp_path / "teacher")
    module = student(teacher=str(tmp_path / "teacher"), **options)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=8)
    trainer.fit(module, datamodule=texts())  # the teacher is better than chance
    assert module.model.config.id2label == model.config.id2label


def test_a_teacher_of_other_tokens_cannot_teach_them(
    trained_teacher, student, quiet_trainer, tmp_path
):
    teacher = random_model(tmp_path / "teacher", **{**GPT2, "vocab_size": 120})
    module = student(task="causal-lm", teacher=teacher, config=GPT2)
    parts = ["model.teacher has 120 tokens", "student 100", "one vocabulary"]
    refuse(module, quiet_trainer(max_epochs=1), lines(trained_teacher), *parts)
    teacher = random_model(tmp_path / "untaught", **GPT2)
    module = student(task="causal-lm", teacher=teacher, config=GPT2)
    parts = ["no better than chance", "perplexity"]
    refuse(module, quiet_trainer(max_epochs=1), lines(trained_teacher), *parts)


def damaged(trained_teacher: Path, folder: Path, file: str) -> str:
    shutil.copytree(trained_teacher / "teacher", folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    return str(folder)


def student_checkpoint(trained_teacher: Path, folder: Path) -> str:
    import lightning as L

    from .conftest import QUIET

    torch.manual_seed(0)
    module = DistillationModule(config=STUDENT, teacher=str(trained_teacher / "teacher"))
    trainer = L.Trainer(**QUIET, max_steps=1, default_root_dir=folder)
    trainer.fit(module, datamodule=text_data(trained_teacher))
    trainer.save_checkpoint(folder / "student.ckpt")
    return str(folder / "student.ckpt")


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def pruned(trained_teacher: Path, folder: Path) -> str:
    model = load_compressed(trained_teacher / "teacher")
    remove_heads_(model, {0: [1]})
    return str(save_compressed(model, folder))


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda s, f: {"teacher": None}, ["there is no teacher", "model.teacher"]),
        (lambda s, f: {"teacher": f"{f}/nowhere"}, ["model.teacher", "nowhere", "path right"]),
        (lambda s, f: {"teacher": damaged(s, f / "a", "model.safetensors")},
         ["model.teacher", "a file in it is damaged", "name another"]),
        (lambda s, f: {"teacher": damaged(s, f / "a", "config.json")},
         ["model.teacher", "cannot be loaded", "is not a valid JSON file"]),
        (lambda s, f: {"teacher": str(s / "tokenizer")}, ["model.teacher", "cannot be loaded"]),
        (lambda s, f: {"teacher": student_checkpoint(s, f)},
         ["model.teacher", "checkpoint of a student", "name the folder model/ of its run"]),
        (lambda s, f: {"teacher": written(f / "a.ckpt", b"nothing of the kind")},
         ["model.teacher", "cannot be read as a checkpoint"]),
        (lambda s, f: {"teacher": str(s / "teacher.ckpt"), "every_nth_layer": 2,
                       "config": {"hidden_dropout_prob": 0.0}},
         ["model.config", "name the folder model/"]),
        (lambda s, f: {"teacher": "dense"}, ["model.teacher is dense", "model.pretrained"]),
        (lambda s, f: {"teacher": "dense", "pretrained": pruned(s, f / "pruned")},
         ["model.teacher is dense", "does not exist", "name a teacher"]),
        (lambda s, f: {"teacher": str(s / "teacher"), "every_nth_layer": 2,
                       "pretrained": str(s / "teacher")}, ["model.every_nth_layer", "one of them"]),
        (lambda s, f: {"every_nth_layer": 5}, ["model.every_nth_layer is 5", "between 2 and 4"]),
        (lambda s, f: {"every_nth_layer": 1}, ["model.every_nth_layer is 1", "between 2 and 4"]),
        (lambda s, f: {"losses": Losses(hidden_states=HiddenStates(layers={0: 4}))},
         ["layer 4 of the teacher", "layers 0 to 3"]),
        (lambda s, f: {"losses": Losses(relations=Relations(layers={2: 0}))},
         ["layer 2 of the student", "layers 0 to 1"]),
        (lambda s, f: {"losses": Losses(hidden_states=HiddenStates(layers={}))},
         ["maps no layer", "uniform or last"]),
        (lambda s, f: {"losses": Losses(attention_maps=AttentionMaps())},
         ["losses.attention_maps", "2 heads", "4", "use losses.relations"]),
        (lambda s, f: {"cache_dir": written(f / "file", b"")},
         ["model.cache_dir", "name a folder with room"]),
        (lambda s, f: {"teacher_cache": "always", "losses": Losses(relations=Relations())},
         ["model.teacher_cache", "too large", "set it to never"]),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_the_first_step(
    texts, student, quiet_trainer, trained_teacher, tmp_path, build, parts
):
    module = student(**build(trained_teacher, tmp_path))
    refuse(module, quiet_trainer(max_epochs=1), texts(), *parts)


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: DistillationModule(top_k=0), ["model.top_k", "at least 1"]),
        (lambda: DistillationModule(losses=Losses(task=None, soft_targets=None)),
         ["model.losses", "nothing to learn"]),
        (lambda: SoftTargets(temperature=0.0), ["losses.soft_targets.temperature", "positive"]),
        (lambda: SoftTargets(temperature=(2.0, 0.0)), ["temperature", "positive"]),
        (lambda: SoftTargets(weight=-1.0), ["losses.soft_targets.weight", "positive"]),
        (lambda: TaskLoss(weight=0.0), ["losses.task.weight", "positive"]),
        (lambda: HiddenStates(weight=(0.0, 0.0)), ["losses.hidden_states.weight", "positive"]),
        (lambda: AttentionMaps(weight=float("nan")), ["losses.attention_maps.weight"]),
        (lambda: Relations(heads=0), ["losses.relations.heads", "at least 1"]),
        (lambda: Embeddings(weight=float("inf")), ["losses.embeddings.weight"]),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(build, parts):
    with pytest.raises(InputError) as caught:
        build()
    assert all(part in str(caught.value) for part in parts)


def test_a_full_disk_is_named(texts, student, quiet_trainer, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pa, "OSFile", full)
    refuse(
        student(), quiet_trainer(max_epochs=1), texts(),
        "model.cache_dir", "No space left", "name a folder with room",
    )  # fmt: skip
    assert not [path for path in (tmp_path / "cache" / "teacher").iterdir() if path.is_dir()]


def test_what_cannot_be_kept_is_refused_with_the_reason(
    trained_teacher, student, quiet_trainer, tmp_path, toy_data
):
    always: dict[str, Any] = {"teacher_cache": "always", "losses": Losses()}
    ramp = Losses(soft_targets=SoftTargets(temperature=(4.0, 1.0)))
    mlm = {**TEACHER, "num_hidden_layers": 1}
    data = lines(trained_teacher, objective="masked")
    trained(trained_teacher, "one_epoch_mlm", data, 8, task="masked-lm", config=mlm)
    trained(
        trained_teacher, "one_epoch_gpt2", lines(trained_teacher), 4, task="causal-lm", config=GPT2
    )
    for task, name, config, losses, data, reason in (
        ("masked-lm", "one_epoch_mlm", mlm, Losses(), lines(trained_teacher, objective="masked"),
         "masked tokens differ in every epoch"),
        ("causal-lm", "one_epoch_gpt2", GPT2, ramp, lines(trained_teacher), "temperature changes"),
    ):  # fmt: skip
        module = student(
            **{**always, "losses": losses},
            task=task,
            config=config,
            teacher=str(trained_teacher / name),
        )
        parts = ["model.teacher_cache", reason, "set it to never"]
        refuse(module, quiet_trainer(max_epochs=1), data, *parts)
        assert not (tmp_path / "cache").exists()


def test_data_of_others_are_learned_from_live(student, quiet_trainer, toy_data, tmp_path):
    options = {**STUDENT, "vocab_size": 100, "max_position_embeddings": 16}
    teacher = trained(tmp_path, "toy", toy_data, 12, config=options)
    assert teacher.trainer.callback_metrics["val_accuracy"] > 0.9
    options = {"config": options, "teacher": str(tmp_path / "toy")}
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(student(**options), toy_data)
    assert not (tmp_path / "cache").exists()
    assert trainer.callback_metrics["val_agreement"] > 0.4
    module = student(**options, teacher_cache="always")
    refuse(module, quiet_trainer(max_epochs=1), toy_data,
           "model.teacher_cache", "no stable example ids", "set it to never")  # fmt: skip


@pytest.fixture(scope="session")
def foreign(trained_teacher):
    """A teacher of the same texts with words in another order, some of them in pieces."""
    words = random.Random(2).sample(WORDS[:60], 60) + [f"##{digit}" for digit in range(10)]
    tokenizer = write_tokenizer(trained_teacher / "foreign_tokenizer", words)
    data = text_data(trained_teacher, tokenizer=str(tokenizer))
    trained(trained_teacher, "foreign", data, 6, config={**TEACHER, "num_hidden_layers": 2})
    return trained_teacher / "foreign"


def test_a_teacher_with_another_tokenizer_reads_the_texts_in_its_own_tokens(
    texts, student, quiet_trainer, trained_teacher, foreign, monkeypatch
):
    seen: list[dict[str, Any]] = []

    def watching(model, batch, wanted):
        said = outputs.run_with_outputs(model, batch, wanted)
        seen.append({**batch, "said": said.logits})
        return said

    monkeypatch.setattr(teachers, "run_with_outputs", watching)
    losses = Losses(embeddings=Embeddings())
    last: dict[str, dict[str, float]] = {}
    for use in ("always", "never"):
        trainer = quiet_trainer(max_epochs=2, log_every_n_steps=1)
        module = student(teacher=str(foreign), teacher_cache=use, losses=losses)
        trainer.fit(module, datamodule=texts(train_on="both"))
        last[use] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert last[use]["val_teacher_accuracy"] > 0.9
    assert last["always"] == pytest.approx(last["never"], rel=1e-3, abs=1e-4)
    data = texts(train_on="both")
    data.setup("fit")
    by_hand = PreTrainedTokenizerFast.from_pretrained(foreign)
    own = data.tokenizer
    checked = 0
    for batch in seen:
        for row, example in enumerate(batch["example_id"].tolist()):
            text = text_of(data, example, own)
            ids = by_hand(text, truncation=True, max_length=24)["input_ids"]
            mask = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][mask].tolist() == ids
            checked += 1
    assert checked > 3 * 172  # kept once, and twice live


def text_of(data: TextClassificationDataModule, example: int, tokenizer: Any) -> str:
    """The words of an example; all are single tokens of the student's."""
    split: Any = data.examples("train")
    if example not in split.sequences.ids:
        split = data.examples("validation")
    batch = split.by_ids(np.array([example]))
    return str(tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True))


@pytest.mark.parametrize(
    "losses",
    [Losses(hidden_states=HiddenStates()), Losses(relations=Relations()),
     Losses(attention_maps=AttentionMaps())],
)  # fmt: skip
def test_its_tokens_are_not_the_students(texts, student, quiet_trainer, foreign, losses):
    refuse(
        student(teacher=str(foreign), losses=losses), quiet_trainer(max_epochs=1), texts(),
        "model.teacher", "another tokenizer", "use only losses.soft_targets and losses.embeddings",
    )  # fmt: skip


def test_a_language_model_with_another_tokenizer_is_refused(
    trained_teacher, student, quiet_trainer, foreign, tmp_path
):
    teacher = random_model(tmp_path / "teacher", **GPT2)
    shutil.copy(foreign / "tokenizer.json", teacher)
    shutil.copy(foreign / "tokenizer_config.json", teacher)
    module = student(task="causal-lm", teacher=teacher, config=GPT2)
    parts = ["model.teacher", "another tokenizer", "teacher with the student's tokenizer"]
    refuse(module, quiet_trainer(max_epochs=1), lines(trained_teacher), *parts)
