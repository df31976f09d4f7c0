"""Load a teacher, check that it fits its student, and evaluate it before training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from lightning_compress.data.labels import KnownLabels
from lightning_compress.distillation.outputs import RequestedOutputs
from lightning_compress.distillation.teacher import LiveTeacher, freeze_
from lightning_compress.errors import InputError, first_line
from lightning_compress.models.forward import known_tokens, most_tokens
from lightning_compress.modules.checkpoint import checkpoint_options
from lightning_compress.modules.labels import known_labels
from lightning_compress.modules.pretrained import build_model
from lightning_compress.saving import edits_in
from lightning_compress.tasks import Task, task_of
from lightning_compress.tasks.labels import labels_of, metrics_of, named_outputs, require_same_names
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DENSE = "dense"


def load_teacher(
    name: str, *, student: str | None, task: Task, config: dict[str, Any] | None = None
) -> "PreTrainedModel":
    """Load a teacher, in float32 and eval mode, without gradients.

    Args:
        name: Hub name, Hugging Face folder, compressed folder, or checkpoint of a FineTuningModule;
            ``dense``: the dense model that the student was compressed from.
        student: ``model.pretrained`` of the student.
        task: of both.
        config: fields of the teacher's configuration to change.

    Raises:
        InputError: the teacher does not exist, is damaged, is a model for another task, or the
            checkpoint of a student.
    """
    if name == DENSE:
        name = _dense_model_of(student)
    path = Path(name)
    if path.is_file():
        if config:
            raise InputError(
                f"model.config cannot change what is made of a checkpoint, {path}: name the "
                "folder model/ of its run in model.teacher"
            )
        model = _from_checkpoint(path)
    else:
        model = build_model(
            pretrained=name,
            config=config,
            task=task,
            labels={},
            vocabulary={},
            new_head=False,
            option="model.teacher",
        )
    freeze_(model)
    return model


def or_of_teacher(known: KnownLabels, name: str, *, student: str | None, task: Task) -> KnownLabels:
    """What a student knows of its labels, or else what its teacher, not loaded yet, knows.

    Args:
        known: of the student.
        name: as of :func:`load_teacher`.
        student: ``model.pretrained`` of the student.
        task: of both.
    """
    if known.names is not None:
        return known
    try:
        name = _dense_model_of(student) if name == DENSE else name
        stored = checkpoint_options(name)
    except (InputError, OSError, EOFError, RuntimeError, UnpicklingError):
        return known  # refused when the teacher is loaded
    options = stored or {"pretrained": name, "config": None}
    theirs = known_labels({"num_labels": None, "problem_type": None, **options}, task)
    if theirs.names is None or known.num_labels not in (None, theirs.num_labels):
        return known
    return replace(theirs, problem_type=known.problem_type or theirs.problem_type)


def _dense_model_of(student: str | None) -> str:
    """The folder ``dense`` beside a run's ``model``; for a dense model, the model itself."""
    if student is None:
        raise InputError(
            "model.teacher is dense, the model that the student is compressed from: name that in "
            "model.pretrained"
        )
    beside = Path(student).parent / DENSE
    if (beside / "config.json").is_file():
        return str(beside)
    if edits_in(student):
        raise InputError(
            f"model.teacher is dense, and {beside}, the dense model that {student} was compressed "
            "from, does not exist: name a teacher"
        )
    return student


def _from_checkpoint(path: Path) -> "PreTrainedModel":
    from lightning_compress.modules.fine_tuning import FineTuningModule

    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if "teacher" in checkpoint["hyper_parameters"]:
            raise InputError(
                f"model.teacher: {path} is the checkpoint of a student of DistillationModule; if "
                "it is to teach, name the folder model/ of its run"
            )
        module = FineTuningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        return module.model
    except (OSError, EOFError, LookupError, RuntimeError, TypeError, UnpicklingError) as error:
        raise InputError(
            f"model.teacher: {path} cannot be read as a checkpoint of FineTuningModule: "
            f"{first_line(error)}"
        ) from error


def check_teacher(teacher: "PreTrainedModel", student: "PreTrainedModel", task: Task) -> None:
    """Require that teacher and student have the same labels or vocabulary.

    Raises:
        InputError: their labels or vocabularies differ.
    """
    theirs, ours = teacher.config, student.config
    if task.over_vocabulary:
        if theirs.vocab_size != ours.vocab_size:
            raise InputError(
                f"model.teacher has {theirs.vocab_size} tokens, the student {ours.vocab_size}: "
                "a language model learns token by token, so both need one vocabulary"
            )
        return
    if task.embeds:
        return
    labels = {"num_labels": ours.num_labels, "id2label": ours.id2label}
    check_labels(
        teacher, {**labels, "problem_type": task_of(student).problem_type}, whose="the student"
    )


def check_labels(teacher: "PreTrainedModel", labels: Mapping[str, Any], *, whose: str) -> None:
    """Require that a teacher predicts some labels.

    Args:
        teacher: a classifier.
        labels: ``num_labels``, ``problem_type`` and ``id2label`` as far as they are known.
        whose: whose labels they are, for the error.

    Raises:
        InputError: the teacher has other labels, or another order of them.
    """
    count, kind = teacher.config.num_labels, task_of(teacher).problem_type
    # Some tasks have no kinds of problems, whatever transformers calls one with as many outputs.
    theirs = kind and labels.get("problem_type")
    wanted = labels.get("num_labels") or count, theirs or kind
    if (count, kind) != wanted:
        raise InputError(
            f"model.teacher has {count} labels ({_words(kind)}) and {whose} {wanted[0]} "
            f"({_words(wanted[1])}): both need the same; fine-tune the teacher on these data first"
        )
    if labels.get("id2label"):
        others = named_outputs(labels["id2label"])
        require_same_names(labels_of(teacher), "model.teacher", others, whose)


def check_inputs(teacher: "PreTrainedModel", *, tokens: int | None, max_length: int | None) -> None:
    """Require that the token ids and positions of the texts are within the teacher's embeddings.

    Args:
        teacher: the model.
        tokens: size of the tokenizer's vocabulary; None: the teacher has a tokenizer of its own.
        max_length: maximum number of tokens of a text.

    Raises:
        InputError: they are not, which would be an index error in the first step.
    """
    rows, positions = known_tokens(teacher), most_tokens(teacher)
    if tokens is not None and rows is not None and tokens > rows:
        raise InputError(
            f"model.teacher knows {rows} tokens and the tokenizer {tokens}: put the tokenizer that "
            "the teacher was trained with into its folder, or name another teacher"
        )
    if max_length is not None and positions is not None and max_length > positions:
        raise InputError(
            f"data.max_length is {max_length} and model.teacher reads at most {positions} tokens: "
            "lower it"
        )


def _words(kind: str | None) -> str:
    return str(kind).replace("_", " ")


def evaluate_teacher(
    teacher: LiveTeacher, batches: Iterable[Batch], trainer: L.Trainer
) -> dict[str, float]:
    """The metrics of a teacher on validation batches, over all processes.

    Raises:
        InputError: the primary metric is no better than the trivial baseline. Not checked in a
            ``fast_dev_run``, nor with too few examples for the comparison.
    """
    config: PreTrainedConfig = teacher.model.config
    task = task_of(teacher.model)
    metrics = metrics_of(teacher.model)
    classes = config.num_labels or 0
    counts = torch.zeros(1 + classes, device=teacher.model.device)
    metrics.to(counts.device)
    baseline = task.baseline_metric()
    for batch in batches:
        logits, labels = teacher(batch, RequestedOutputs()).logits, batch["labels"]
        assert isinstance(logits, Tensor)
        metrics.update(*task.predictions_and_targets(logits, labels))
        counts[0] += len(labels)
        counts[1:] += task.label_counts(labels, classes)
        if baseline is not None:
            baseline.to(counts.device).update(labels)
    found = {name: float(value) for name, value in metrics.compute().items()}
    examples, *each = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    counted = task.trivial_baseline(
        examples=int(examples),
        label_counts=[int(count) for count in each],
        vocabulary=getattr(config, "vocab_size", 0),
    )
    chance = counted if baseline is None else float(baseline.compute())
    name, higher = task.primary_metric, task.higher_is_better
    learned = found[name] > chance if higher else found[name] < chance
    few = higher and chance >= 1  # or of one class only
    if not learned and not few and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # dynamic
        raise InputError(
            f"model.teacher is no better than chance: its {name} is {found[name]:.4g} on "
            f"{int(examples)} validation examples, where {chance:.4g} could be luck; fine-tune it "
            "on these data first"
        )
    return found
