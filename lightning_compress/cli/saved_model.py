"""Shared by the commands on a saved model: loading the model and the data, and their options."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from lightning_compress.data.info import DataInfo
from lightning_compress.errors import InputError
from lightning_compress.quantization.activation_stats import CALIBRATION_EXAMPLES
from lightning_compress.tasks import declare_task_, task_names, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_compress.types import Batch


def model_and_data_parser(command: str, description: str) -> ArgumentParser:
    """A parser with the options that these commands share."""
    parser = ArgumentParser(prog=f"lightning-compress {command}", description=description)
    parser.add_argument("model", type=str, help="folder (compressed or Hugging Face) or Hub name")
    parser.add_argument(
        "--task",
        type=str,
        choices=task_names(),
        default=None,
        help="task that the model was trained for; default: that of the architecture in its config",
    )
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        default={"class_path": "lightning_compress.data.TextClassificationDataModule"},
        help="data module; its test split, and training examples for calibration, are used",
    )
    return parser


def ready_options(make_parser: Callable[[], ArgumentParser], arguments: list[str]) -> Any:
    """Parse a command's arguments; data without a tokenizer get the model's."""
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
    options = make_parser().parse_args(arguments)
    data_options = options.data.init_args
    if "tokenizer" in data_options and data_options.tokenizer is None:
        data_options.tokenizer = options.model
    return make_parser().instantiate(options)


def load_saved(name: str, task: str | None) -> "PreTrainedModel":
    """Load a model with its trained head by its folder or Hub name, in eval mode.

    Args:
        name: of the model.
        task: what it has to be for; None: any supported task.

    Raises:
        InputError: it is for another task, for none, or lacks some of its weights.
    """
    from lightning_compress.modules.pretrained import load_trained

    model = load_trained(name)
    if task is not None:
        declare_task_(model, [task])
    own = task_of(model).name
    if task not in (None, own):
        raise InputError(
            f"task: {name} is a {type(model).__name__}, which does {own} and not {task}: leave the "
            "option out, or choose another model"
        )
    return model


def set_up(data: Any, model: "PreTrainedModel", stage: str) -> None:
    """Set data up for a model: their labels are the model's, in the model's order."""
    from lightning_compress.tasks.labels import labels_of

    info = DataInfo.of(data)
    declare_task_(model, info.tasks)
    info.require_task(task_of(model).name)
    data.known_labels = labels_of(model)
    data.setup(stage)
    unknown = model.config.problem_type is None and data.known_labels.names is not None
    if unknown or task_of(model).embeds:
        # Of several outputs only the data can say whether one or several hold, of pairs of texts
        # whether they have scores.
        model.config.problem_type = getattr(data, "problem_type", None)


def calibration_batches_of(data: Any, model: "PreTrainedModel", batch_size: int) -> "list[Batch]":
    """Batches of training examples for calibration."""
    from lightning_compress.evaluation.examples import sampled_batches

    set_up(data, model, "fit")
    return sampled_batches(
        data.train_dataloader(),
        CALIBRATION_EXAMPLES,
        batch_size=batch_size,
        pad_token_id=model.config.pad_token_id or 0,
    )
