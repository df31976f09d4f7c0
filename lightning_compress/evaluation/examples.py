"""Examples taken out of a dataloader's batches, and the batches that a benchmark runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.types import (
    IGNORE_INDEX,
    MAIN_INPUTS,
    Batch,
    main_input,
    padded_length,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One example without padding.

    Attributes:
        tokens: inputs with one value per token, such as ``input_ids``, each [S]; of an image
            ``pixel_values`` [C, H, W].
        labels: a scalar or [C] for a classifier, [S] for a language model; None without labels.
        example_id: identifies the example; None if unknown.
    """

    tokens: dict[str, Tensor]
    labels: Tensor | None
    example_id: int | None

    def __len__(self) -> int:
        """Number of tokens; all images are as long as one another."""
        return len(self.tokens["input_ids"]) if "input_ids" in self.tokens else 1


def examples_of(batches: Iterable[object], *, split: str = "test") -> list[Example]:
    """Split batches into examples without padding.

    Args:
        batches: dictionaries with ``input_ids`` [B, S] and, where there is padding,
            ``attention_mask`` [B, S], or with ``pixel_values`` [B, C, H, W]; other entries shaped
            like these are kept, ``labels`` and ``example_id`` too.
        split: the split's name in error messages.

    Raises:
        InputError: a batch has another form, or there is no batch.
    """
    examples = [example for batch in batches for example in _apart(batch, split)]
    if not examples:
        raise InputError(f"the {split} dataloader gives no example: check the {split} split")
    return examples


def _apart(batch: object, split: str) -> Iterator[Example]:
    if not isinstance(batch, Mapping) or not any(name in batch for name in MAIN_INPUTS):
        raise InputError(
            f"the {split} dataloader must give dictionaries with input_ids, as Hugging Face models "
            f"take them, or pixel_values, not {type(batch).__name__}"
        )
    ids: Tensor = main_input(batch)
    # An image is kept whole, as what has no padding.
    mask = batch.get("attention_mask", torch.ones_like(ids)).bool().cpu()
    labels, example_ids = batch.get("labels"), batch.get("example_id")
    per_token = {
        name: value.cpu()
        for name, value in batch.items()
        if isinstance(value, Tensor)
        and value.shape == ids.shape
        and name not in ("attention_mask", "labels", "example_id")
    }
    # Labels of several classes are numbers; only those of a language model are integers in rows.
    labels_per_token = (
        labels is not None and labels.shape == ids.shape and not labels.is_floating_point()
    )
    for row, kept in enumerate(mask):
        label = None if labels is None else labels[row].cpu()
        yield Example(
            tokens={
                name: value[row][kept] if "input_ids" in batch else value[row]
                for name, value in per_token.items()
            },
            labels=label[kept] if label is not None and labels_per_token else label,
            example_id=None if example_ids is None else int(example_ids[row]),
        )


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Drop repeated examples; a distributed sampler repeats some to make the shares equal."""
    seen: dict[object, Example] = {}
    for number, example in enumerate(examples):
        key = ("unknown", number) if example.example_id is None else example.example_id
        seen.setdefault(key, example)
    return list(seen.values())


def collated(examples: Sequence[Example], *, pad_token_id: int, longest: int) -> Batch:
    """Pad examples to a batch, with ``labels`` if all have them.

    Args:
        examples: at least one.
        pad_token_id: padding of ``input_ids``.
        longest: largest length to pad to.

    Returns:
        Tensors [B, S] and ``labels``; one example is not padded, several are to a multiple of 8.
        Images are stacked.
    """
    names = examples[0].tokens
    if "input_ids" in names:
        batch = _padded(examples, pad_token_id, longest)
    else:
        batch = {name: torch.stack([one.tokens[name] for one in examples]) for name in names}
    labels = [example.labels for example in examples if example.labels is not None]
    if len(labels) == len(examples):
        per_token = labels[0].dim() == 1 and not labels[0].is_floating_point()
        batch["labels"] = (
            _stacked(labels, batch["input_ids"].shape[1], IGNORE_INDEX)
            if per_token
            else torch.stack(labels)
        )
    return batch


def _padded(examples: Sequence[Example], pad_token_id: int, longest: int) -> Batch:
    """Texts in a batch, with its ``attention_mask``."""
    width = max(len(example) for example in examples)
    if len(examples) > 1:
        width = padded_length(width, max(longest, width))
    batch = {
        name: _stacked(
            [example.tokens[name] for example in examples],
            width,
            pad_token_id if name == "input_ids" else 0,
        )
        for name in examples[0].tokens
    }
    ones = [torch.ones_like(example.tokens["input_ids"]) for example in examples]
    batch["attention_mask"] = _stacked(ones, width, 0)
    return batch


def _stacked(rows: Sequence[Tensor], width: int, filling: int) -> Tensor:
    stacked = rows[0].new_full((len(rows), width), filling)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
    return stacked


def length_bucketed(
    examples: Sequence[Example], batch_size: int, *, pad_token_id: int
) -> list[Batch]:
    """All examples in batches of similar length, shortest first; the last may be smaller."""
    ordered = sorted(examples, key=len)
    longest = len(ordered[-1])
    return [
        collated(ordered[start : start + batch_size], pad_token_id=pad_token_id, longest=longest)
        for start in range(0, len(ordered), batch_size)
    ]


def sampled_batches(
    batches: Iterable[object], count: int, *, batch_size: int, pad_token_id: int
) -> list[Batch]:
    """``count`` examples of a dataloader, evenly chosen, in batches of similar length.

    Raises:
        InputError: as of :func:`examples_of`.
    """
    chosen = spread_evenly(examples_of(batches), count)
    return length_bucketed(chosen, batch_size, pad_token_id=pad_token_id)


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Pick ``count`` items at even distances; all if there are fewer.

    Of a sequence sorted by length this is a sample with the same distribution of lengths.
    """
    if count >= len(items):
        return list(items)
    return [items[int((place + 0.5) * len(items) / count)] for place in range(count)]


_THROUGHPUT_BATCHES = 8


@dataclass(frozen=True)
class Workload:
    """Batches of real examples, each list shortest first.

    Attributes:
        whole: the whole split.
        timed: by batch size, batches of exactly that size, evenly chosen from all lengths; single
            examples are not padded.
        longest: the batch with the longest examples, of the largest size.
        image_tokens: tokens that the models make of an image.
    """

    whole: list[Batch]
    timed: dict[int, list[Batch]]
    longest: Batch
    image_tokens: int = 0

    def length(self, batch: Batch) -> int:
        """Number of tokens of each example of a batch, with padding."""
        return batch["input_ids"].shape[1] if "input_ids" in batch else self.image_tokens

    @property
    def typical(self) -> Batch:
        """The example of median length."""
        return self.timed[1][len(self.timed[1]) // 2]

    @property
    def warmup_batches(self) -> list[Batch]:
        """Batches of all shapes that will be run, the largest first."""
        shortest = [batches[0] for size, batches in sorted(self.timed.items()) if size > 1]
        return [self.longest, *reversed(shortest), self.typical]


def workload_of(
    examples: Sequence[Example],
    *,
    batch_sizes: Sequence[int],
    singles: int,
    pad_token_id: int,
    image_tokens: int = 0,
) -> Workload:
    """Choose the batches of a benchmark.

    Args:
        examples: all examples of the split.
        batch_sizes: sizes of the timed batches, besides single examples; the largest is also used
            for the whole split.
        singles: largest number of single examples to time.
        pad_token_id: padding of ``input_ids``.
        image_tokens: tokens that the models make of an image, where examples are images.
    """
    ordered = sorted(examples, key=len)
    full = {size: _full_batches(ordered, size, pad_token_id) for size in batch_sizes}
    alone = [
        collated([example], pad_token_id=pad_token_id, longest=len(example))
        for example in spread_evenly(ordered, singles)
    ]
    return Workload(
        whole=length_bucketed(ordered, max(batch_sizes), pad_token_id=pad_token_id),
        timed={size: spread_evenly(b, _THROUGHPUT_BATCHES) for size, b in full.items()}
        | {1: alone},
        longest=full[max(batch_sizes)][-1],
        image_tokens=image_tokens,
    )


def _full_batches(ordered: Sequence[Example], size: int, pad_token_id: int) -> list[Batch]:
    """All batches of exactly that size; examples are repeated if there are too few."""
    if len(ordered) < size:
        ordered = sorted(islice(cycle(ordered), size), key=len)
    batches = length_bucketed(ordered, size, pad_token_id=pad_token_id)
    return [batch for batch in batches if len(main_input(batch)) == size]
