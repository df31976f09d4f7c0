"""From a name to a teacher that fits its student."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.distillation.teachers import freeze_
from lightning_compress.errors import InputError
from lightning_compress.evaluation.task import Task, problem_type_of
from lightning_compress.models.saving import MANIFEST
from lightning_compress.modules.building import build_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DENSE = "dense"


def load_teacher(
    name: str, *, student: str | None, task: Task, config: dict[str, Any] | None = None
) -> "PreTrainedModel":
    """Load a teacher, in float32 and eval mode, without gradients.

    Args:
        name: Hub name, Hugging Face folder, compressed folder, or checkpoint of a FineTuningModule;
            ``dense``: the model that the student came from.
        student: what the student starts from.
        task: what both do.
        config: fields of its configuration to change.

    Raises:
        InputError: it is not there, damaged, for another task, or the student of a distillation.
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


def _dense_model_of(student: str | None) -> str:
    """Beside a run's ``model`` lies its ``dense``; a model that nothing was cut from is its own."""
    if student is None:
        raise InputError(
            "model.teacher is dense, the model that the student came from: name that in "
            "model.pretrained"
        )
    beside = Path(student).parent / DENSE
    if (beside / "config.json").is_file():
        return str(beside)
    if (Path(student) / MANIFEST).is_file() and '"edits": []' not in (
        Path(student) / MANIFEST
    ).read_text():
        raise InputError(
            f"model.teacher is dense, and {beside}, which would be the model that {student} came "
            "from, is not there: name a teacher"
        )
    return student


def _from_checkpoint(path: Path) -> "PreTrainedModel":
    from lightning_compress.modules.fine_tuning import FineTuningModule

    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        options = checkpoint["hyper_parameters"]
        module = FineTuningModule.load_from_checkpoint
        if "teacher" in options:
            raise InputError(
                f"model.teacher: {path} is the checkpoint of a student of DistillationModule; if "
                "it is to teach, name the folder model/ of its run"
            )
        return module(path, map_location="cpu", weights_only=True).model
    except InputError:
        raise
    except Exception as error:  # damaged files fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model.teacher: {path} cannot be read as a checkpoint of FineTuningModule: {reason}"
        ) from error


def check_teacher(teacher: "PreTrainedModel", student: "PreTrainedModel", task: Task) -> None:
    """See that a teacher predicts what its student is to predict.

    Raises:
        InputError: their labels or vocabularies differ.
    """
    its, own = teacher.config, student.config
    if task != "sequence-classification":
        if its.vocab_size != own.vocab_size:
            raise InputError(
                f"model.teacher predicts {its.vocab_size} tokens and the student {own.vocab_size}: "
                "a language model learns token by token, so both need one vocabulary"
            )
        return
    kinds = problem_type_of(teacher), problem_type_of(student)
    if its.num_labels != own.num_labels or kinds[0] != kinds[1]:
        raise InputError(
            f"model.teacher has {its.num_labels} labels ({_words(kinds[0])}) and the student "
            f"{own.num_labels} ({_words(kinds[1])}): both need the same; fine-tune the teacher on "
            "the student's data"
        )
    names = _names(its), _names(own)
    if None not in names and names[0] != names[1]:
        raise InputError(
            f"model.teacher has the labels {', '.join(names[0] or [])} and the student "
            f"{', '.join(names[1] or [])}, in this order: both need the same in the same order"
        )


def _words(kind: str | None) -> str:
    return str(kind).replace("_", " ")


def _names(config: "PreTrainedConfig") -> list[str] | None:
    """The labels' names in order; None where they are but numbers, which say nothing."""
    known: dict[Any, str] = {int(index): name for index, name in (config.id2label or {}).items()}
    names = [str(known[index]).lower() for index in range(config.num_labels or 0)]
    numbered = all(name.removeprefix("label_").isdigit() for name in names)
    return None if numbered else names
