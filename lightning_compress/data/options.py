"""Options that all data modules share, and the checks of them before anything is read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from lightning_compress.data.info import DataInfo
from lightning_compress.data.label_column import shown
from lightning_compress.data.local_files import FileFormat
from lightning_compress.data.sources import Source
from lightning_compress.data.splits import SplitName
from lightning_compress.errors import InputError

if TYPE_CHECKING:
    from lightning import LightningDataModule, Trainer
    from transformers import PreTrainedTokenizerBase


class RowOptions(TypedDict, total=False):
    """Options of every data module, whatever its rows hold."""

    path: str | None
    config: str | None
    splits: dict[SplitName, str | list[str]] | None
    format: FileFormat | None
    tokenizer: str | None
    max_length: int
    batch_size: int
    eval_batch_size: int | None
    validation_fraction: float
    limits: dict[SplitName, int] | None
    seed: int
    num_workers: int
    cache_dir: str


class TextDataOptions(RowOptions, total=False):
    """Options of :class:`~lightning_compress.data.datamodule.TextDataModule`, documented there."""

    text: str | list[str]


def check_options(
    *,
    counts: Mapping[str, int],
    numbers: Mapping[str, int],
    validation_fraction: float,
    text: Sequence[str],
) -> None:
    """Check the values of options.

    Args:
        counts: options that are at least 1.
        numbers: options that are at least 0.
        validation_fraction: lies between 0 and 1.
        text: one column, or two different ones.

    Raises:
        InputError: an option is out of its range.
    """
    for least, options in ((1, counts), (0, numbers)):
        for name, value in options.items():
            if value < least:
                raise InputError(f"data.{name} is {value}: it must be at least {least}")
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"data.validation_fraction is {validation_fraction}: it must lie between 0 and 1"
        )
    if not 1 <= len(text) <= 2 or len(set(text)) < len(text):
        raise InputError(f"data.text is {list(text)}: name one text column, or two different ones")


def check_length(tokenizer: "PreTrainedTokenizerBase", max_length: int, *, texts: int) -> None:
    """Compare ``max_length`` with what the tokenizer needs and allows.

    Args:
        tokenizer: tokenizer of the run.
        max_length: maximum tokens of a sequence.
        texts: number of texts in a sequence, 1 or 2.

    Raises:
        InputError: there is no room for a token of each text, or the model takes fewer.
    """
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < least:
        raise InputError(
            f"data.max_length is {max_length}: with the tokenizer's special tokens it must be at "
            f"least {least}"
        )
    if max_length > tokenizer.model_max_length:
        raise InputError(
            f"data.max_length is {max_length}: the tokenizer's model takes at most "
            f"{tokenizer.model_max_length} tokens"
        )


def check_task(data: "LightningDataModule", trainer: "Trainer | None") -> None:
    """Check that the module that a Trainer runs is for labels such as those of the data.

    Raises:
        InputError: it is for another task.
    """
    task = getattr(getattr(trainer, "lightning_module", None), "task", None)
    name = getattr(task, "name", None)  # of a module of this package
    if name is not None:
        DataInfo.of(data).require_task(name)


def check_limits(limits: Iterable[SplitName], splits: Collection[SplitName]) -> None:
    """Check that there are the splits that are limited.

    Raises:
        InputError: one is not there.
    """
    for split in limits:
        if split not in splits:
            raise InputError(
                f"data.limits.{split}: there is no {split} split; there are {', '.join(splits)}"
            )


def check_columns(source: Source, split: SplitName, wanted: Mapping[str, str]) -> None:
    """Check that a split has the columns that the options name, without reading its rows.

    Args:
        source: rows of the split.
        split: name of the split.
        wanted: the option that names each column, by column.

    Raises:
        InputError: a column is missing, or all are.
    """
    present = source.columns()
    if not present:
        raise InputError(
            f"{source.name}: no column, it is empty or its files have none in common: data.path "
            "needs files with rows in them"
        )
    headless = not set(wanted) & set(present) and any(map(_is_data, present))
    for column, option in wanted.items():
        if column not in present and headless:
            raise InputError(
                f"data.{option}: the first line of {source.name} seems to be a row and not the "
                f"names of its columns: {shown(present)}. Put a line with the names "
                f"first, such as {','.join(wanted)}"
            )
        if column not in present:
            raise InputError(
                f"data.{option}: {source.name} has no column {column!r}; it has "
                f"{shown(present, 20)}. Name one of these, or another file in "
                f"data.splits.{split}"
            )
        if present.count(column) > 1:
            raise InputError(
                f"data.{option}: {source.name} has {present.count(column)} columns {column!r}: "
                "rename all but one"
            )


def _is_data(name: str) -> bool:
    """Whether the name of a column is rather a text or a number."""
    return len(name.split()) > 2 or name.strip().replace(".", "", 1).lstrip("-").isdigit()
