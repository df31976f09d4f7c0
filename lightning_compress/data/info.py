"""What modules, callbacks and commands need to know of a data module, whoever wrote it."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from lightning_compress.data.tokenizer import vocabulary_size
from lightning_compress.errors import InputError
from lightning_compress.types import ProblemType

if TYPE_CHECKING:
    from lightning import LightningDataModule, Trainer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """Facts of a data module after ``setup``; a data module declares them as attributes.

    Args:
        tokenizer: tokenizer of the batches; None where there is none, as in synthetic data.
        pad_token_id: token that ``input_ids`` are padded with; None: that of the tokenizer.
        num_labels: number of classes, or of numbers per example; None without labels.
        problem_type: kind of labels; None without labels.
        label_names: names of the classes in the order of their indices.
        label_frequencies: fraction of the labelled training examples with each label.
        max_length: maximum tokens per example; 0 if unknown.
        train_on: ``labelled``, ``unlabelled`` or ``both``: the examples of training batches.
        task_name: name of the data in reports; empty for no data module.
        tasks: values of ``model.task`` that the labels are for; empty: not said.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    pad_token_id: int | None = None
    num_labels: int | None = None
    problem_type: ProblemType | None = None
    label_names: list[str] | None = None
    label_frequencies: list[float] | None = None
    max_length: int = 0
    train_on: str = "labelled"
    task_name: str = ""
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, datamodule: "LightningDataModule | None") -> Self:
        """Read the facts off a data module; defaults stand for attributes that it does not have."""
        if datamodule is None:
            return cls()
        computed = ("task_name", "pad_token_id")
        names = [field.name for field in fields(cls) if field.name not in computed]
        declared = {name: getattr(datamodule, name) for name in names if hasattr(datamodule, name)}
        tokenizer = declared.get("tokenizer")
        if tokenizer is not None:  # before setup there is neither
            declared["pad_token_id"] = getattr(datamodule, "pad_token_id", tokenizer.pad_token_id)
        name = getattr(datamodule, "task_name", None) or type(datamodule).__name__
        return cls(**declared, task_name=name)

    @classmethod
    def of_trainer(cls, trainer: "Trainer | None") -> Self:
        """Read the facts off the data module of a Trainer; it has none before it runs."""
        return cls.of(getattr(trainer, "datamodule", None))

    def require_task(self, name: str) -> None:
        """Refuse a task that the labels are not for.

        Raises:
            InputError: they are for others.
        """
        from lightning_compress import data

        if self.tasks and name not in self.tasks:
            fitting = [one for one in data.__all__ if name in getattr(data, one).tasks]
            wanted = "".join(f" such as lightning_compress.data.{one}" for one in fitting)
            raise InputError(
                f"model.task is {name} and the data module gives labels for "
                f"{' and '.join(self.tasks)}: set the one that you mean, or choose another data "
                f"module{wanted} in data.class_path (--data of a command)"
            )

    @property
    def vocabulary(self) -> dict[str, Any]:
        """Fields of a model's configuration that follow from the tokenizer; empty without one."""
        if self.tokenizer is None:
            return {}
        return {
            "vocab_size": vocabulary_size(self.tokenizer),
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }
