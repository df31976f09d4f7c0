"""What a checkpoint says of its model, so that it can be loaded without any other file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.compression_state import restore_compression_
from lightning_compress.errors import InputError
from lightning_compress.models.manifest import COMPRESSION
from lightning_compress.modules.pretrained import require_same_tensors
from lightning_compress.tasks import Task
from lightning_compress.tasks.labels import labels_of, named_outputs, require_same_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_compress.modules.fine_tuning import FineTuningModule


def model_options(model: "PreTrainedModel", task: Task) -> dict[str, Any]:
    """Options of a FineTuningModule that build this model anew."""
    return {
        "pretrained": None,
        "config": {**model.config.to_diff_dict(), "id2label": model.config.id2label},
        "num_labels": model.config.num_labels,
        "problem_type": task.problem_type,
    }


def checkpoint_options(path: str | Path) -> dict[str, Any] | None:
    """The options in a checkpoint of this package; None if it has none."""
    if not Path(path).is_file():
        return None
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    options = checkpoint.get("hyper_parameters", {})
    wanted = {"pretrained", "config", "num_labels", "problem_type"}
    return dict(options) if wanted <= options.keys() and options["config"] else None


def restore_shapes_(module: "FineTuningModule", checkpoint: Mapping[str, Any]) -> None:
    """Give the model of a module the shapes of a checkpoint's, before its weights arrive.

    Raises:
        InputError: the checkpoint is of another module or model, or of other labels.
    """
    if COMPRESSION not in checkpoint or "seed" not in checkpoint:
        raise InputError(
            "the checkpoint is of another module: it was not written by a "
            f"{type(module).__name__} of this package. Give one that was"
        )
    if not module.task.over_vocabulary:
        theirs = named_outputs(checkpoint["hyper_parameters"]["config"]["id2label"])
        require_same_names(theirs, "the checkpoint", labels_of(module.model), "the model here")
    restore_compression_(module.model, checkpoint[COMPRESSION])
    require_same_tensors(module.state_dict(), checkpoint["state_dict"])
