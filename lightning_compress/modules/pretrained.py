"""From a name, a folder or a configuration to a Hugging Face model that fits the data."""

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor

from lightning_compress.compression_state import is_saved_here
from lightning_compress.errors import InputError, first_line
from lightning_compress.models.sentence_embedding import (
    EMBEDDING,
    Pooling,
    has_embedding_files,
    state_pooling_,
)
from lightning_compress.saving import load_compressed, quiet_transformers
from lightning_compress.tasks import DECLARED_TASK, TASKS, Task, declare_task_, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


# What saved configurations hold beside their fields.
_WRITTEN = {"compression", "transformers_version", "auto_map", DECLARED_TASK, EMBEDDING}
_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)


def build_model(
    *,
    pretrained: str | None,
    config: dict[str, Any] | None,
    task: Task,
    labels: dict[str, Any],
    vocabulary: dict[str, Any],
    new_head: bool,
    pooling: Pooling | None = None,
    option: str = "model.pretrained",
) -> "PreTrainedModel":
    """Build the model of a run, in float32.

    Args:
        pretrained: a Hub name, a Hugging Face folder or a compressed folder; None: from scratch.
        config: fields of the Hugging Face configuration; ``model_type`` names the architecture
            when there is nothing pretrained.
        task: what the model is trained for.
        labels: ``num_labels``, ``problem_type``, ``id2label``, ``label2id`` as far as known.
        vocabulary: ``vocab_size``, ``pad_token_id``, ... for a model from scratch.
        new_head: put an untrained head in the place of one for another number of labels.
        pooling: how embeddings are made of the states of tokens; None: as the model states it.
        option: what error messages call ``pretrained``.

    Raises:
        InputError: neither or both of ``pretrained`` and a ``model_type`` are given, or the model
            cannot be found, or its head is for another task or number of labels.
    """
    config = dict(config or {})
    _require_known(config, pretrained)
    fields = {**labels, **config}
    if pretrained is None:
        model = _from_scratch(task, {**vocabulary, **fields})
    elif "model_type" in config:
        raise InputError(
            "model.config.model_type asks for a new model and model.pretrained for an existing "
            "one: give one of them"
        )
    elif is_saved_here(pretrained):
        model = _compressed(pretrained, fields, new_head, option)
    else:
        model = _from_pretrained(pretrained, task, fields, new_head, option)
    declare_task_(model, [task.name])
    if pooling is not None:
        state_pooling_(model, pooling)
    if task_of(model).auto_class != task.auto_class:
        raise InputError(
            f"{option}: {pretrained} is a {type(model).__name__}, which does not do {task.name}: "
            "choose another folder or another model.task"
        )
    return model


def _require_known(fields: dict[str, Any], pretrained: str | None) -> None:
    """Refuse fields that a configuration does not have; transformers keeps them without a word.

    Raises:
        InputError: there is such a field.
    """
    import transformers

    if not fields:
        return
    try:
        config = (
            transformers.AutoConfig.for_model(fields["model_type"])
            if pretrained is None
            else transformers.AutoConfig.from_pretrained(pretrained)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return  # the error is raised when the model is built
    for name in fields:
        if name not in _WRITTEN and not hasattr(config, name) and not _is_read(config, name):
            known = [one for one in dir(config) if not one.startswith("_")]
            near = "".join(f", such as {one}" for one in get_close_matches(name, known, 1))
            raise InputError(
                f"model.config.{name}: a {type(config).__name__} has no such field: correct it to "
                f"one that it has{near}"
            )


def _is_read(config: "PreTrainedConfig", name: str) -> bool:
    """Whether the code of a model reads a field that its configuration does not declare."""
    folder = Path(inspect.getfile(type(config))).parent
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(word.search(file.read_text()) for file in folder.glob("modeling_*.py"))


def load_trained(name: str) -> "PreTrainedModel":
    """Load a model of the architecture that its configuration names, in float32 and eval mode.

    The task of an encoder with files for sentence-transformers is sentence-similarity.

    Args:
        name: a Hub name, a Hugging Face folder or a compressed folder.

    Raises:
        InputError: it cannot be found, its architecture is unknown, or some weights are missing.
    """
    model = _of_its_architecture(name)
    if has_embedding_files(name):
        declare_task_(model, [task.name for task in TASKS if task.embeds])
    return model


def _of_its_architecture(name: str) -> "PreTrainedModel":
    import transformers

    if (Path(name) / "config.json").is_file():
        return load_compressed(name, dtype="float32")
    try:
        found = transformers.AutoConfig.from_pretrained(name).architectures or ["none"]
        architecture = getattr(transformers, found[0], None)
        if architecture is None:
            raise InputError(
                f"the configuration of {name} names an unknown architecture: {found[0]}"
            )
        with quiet_transformers():
            model: PreTrainedModel
            model, loading = architecture.from_pretrained(
                name, dtype="float32", output_loading_info=True
            )
    except _UNREADABLE as error:
        raise _not_loaded("model", name, error) from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise InputError(f"{name} lacks tensors of {found[0]} ({missing}): choose a complete model")
    return model


def _from_scratch(task: Task, fields: dict[str, Any]) -> "PreTrainedModel":
    import transformers

    fields = {name: value for name, value in fields.items() if value is not None}
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise InputError(
            "there is no model: give model.pretrained (a Hub name or a folder), or "
            "model.config.model_type (bert, gpt2, ...) to start from scratch"
        )
    try:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        if "vocab_size" not in fields and hasattr(config, "vocab_size"):
            raise InputError(
                "a model from scratch needs to know its vocabulary: give the run a data module "
                "with a tokenizer, or set model.config.vocab_size"
            )
        # Where a task has several classes, transformers looks for theirs, also if there is none.
        config.architectures = config.architectures or []
        model: PreTrainedModel = getattr(transformers, task.auto_class).from_config(config)
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"model.config does not work: {first_line(error)}") from error
    return model


def _from_pretrained(
    name: str, task: Task, fields: dict[str, Any], new_head: bool, option: str
) -> "PreTrainedModel":
    import transformers

    try:
        with quiet_transformers():
            model: PreTrainedModel
            model, found = getattr(transformers, task.auto_class).from_pretrained(
                name,
                dtype="float32",
                ignore_mismatched_sizes=new_head,
                output_loading_info=True,
                **fields,
            )
    except _UNREADABLE as error:
        raise _not_loaded(option, name, error) from error
    _require_same_body(model, name, option, sorted(str(key) for key in found["mismatched_keys"]))
    _report_new_weights(model, name, sorted(found["missing_keys"]))
    return model


def _not_loaded(option: str, name: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(
        f"{option}: {name!r} cannot be loaded, neither as a folder (is the path right, "
        "are its files whole?) nor from the Hub (is the name right, is the machine online?): "
        f"{first_line(error)}"
    )


def _compressed(
    folder: str, fields: dict[str, Any], new_head: bool, option: str
) -> "PreTrainedModel":
    try:
        return load_compressed(folder, new_head=new_head, dtype="float32", **fields)
    except InputError as error:
        raise InputError(f"{option}: {error}. Write the folder again, or name another") from error


def _require_same_body(
    model: "PreTrainedModel", name: str, option: str, mismatched: list[str]
) -> None:
    """Refuse other shapes than in the head, in whose place there may be an untrained one."""
    body = [key for key in mismatched if f"{model.base_model_prefix}." in key]
    if body:
        raise InputError(
            f"{option}: {name} has tensors of other shapes than its configuration, the first is "
            f"{body[0]}: leave the sizes out of model.config, or mend its config.json"
        )


def _report_new_weights(model: "PreTrainedModel", name: str, missing: list[str]) -> None:
    """Report weights with random values: expected in a new head, a warning in the body."""
    # A pooler belongs to the head: masked language models are saved without one.
    missing = [key for key in missing if not key.startswith("pooler.")]
    body = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    body = [key for key in body if ".pooler." not in key]
    if body:
        rank_zero_warn(
            f"{name} lacks {len(body)} tensors of the model ({', '.join(body[:3])}), which start "
            "from random numbers: train them, or choose a complete model"
        )
    elif missing:
        rank_zero_info(f"The head on {name} is new and untrained.")


def require_same_tensors(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Require that a checkpoint has the tensors of a module.

    Args:
        own: ``state_dict`` of the module.
        other: that of the checkpoint.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    ours = {name: tuple(value.shape) for name, value in own.items()}
    theirs = {name: tuple(value.shape) for name, value in other.items()}
    if ours != theirs:
        different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        name = different[0]
        raise InputError(
            f"the checkpoint is of another model: {len(different)} tensors differ, the first "
            f"is {name}: {theirs.get(name, 'absent')} in the checkpoint, "
            f"{ours.get(name, 'absent')} here. Give the model it was saved from, with the options "
            "of its config.yaml"
        )
