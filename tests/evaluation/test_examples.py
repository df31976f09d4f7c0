"""Taking batches apart and making new ones."""

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import (
    Example,
    collated,
    distinct,
    examples_of,
    length_bucketed,
    spread_evenly,
)


def example(*ids: int, label: int = 0, number: int | None = None) -> Example:
    return Example({"input_ids": torch.tensor(ids)}, torch.tensor(label), number)


def test_padding_is_cut_off_on_either_side_and_what_is_per_token_goes_with_it() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 0], [0, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 1, 9], [9, 0, 1]]),
        "labels": torch.tensor([3, 4]),
        "example_id": torch.tensor([30, 40]),
    }
    first, second = examples_of([batch])
    assert first.tokens["input_ids"].tolist() == [5, 6]
    assert second.tokens["input_ids"].tolist() == [7, 8]
    assert second.tokens["token_type_ids"].tolist() == [0, 1]
    assert (first.example_id, second.example_id) == (30, 40)
    assert first.labels is not None
    assert first.labels.item() == 3


def test_labels_of_tokens_are_cut_and_labels_of_classes_are_not() -> None:
    ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    tokens, classes = torch.tensor([[5, 6, -100]]), torch.tensor([[1.0, 0.0, 1.0]])
    (language,) = examples_of([{"input_ids": ids, "attention_mask": mask, "labels": tokens}])
    (several,) = examples_of([{"input_ids": ids, "attention_mask": mask, "labels": classes}])
    assert language.labels is not None
    assert several.labels is not None
    assert language.labels.tolist() == [5, 6]
    assert several.labels.tolist() == [1, 0, 1]


def test_batches_of_another_form_and_no_batches_are_refused() -> None:
    with pytest.raises(InputError, match=r"input_ids.*not list"):
        examples_of([[torch.zeros(2, 3)]])
    with pytest.raises(InputError, match="no example"):
        examples_of([])


def test_batches_are_padded_to_a_multiple_of_eight_but_never_beyond_the_longest() -> None:
    short = [example(1, 2, 3), example(4)]
    batch = collated(short, pad_token_id=9, longest=100)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 9, 9, 9, 9], [4, *[9] * 7]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1]
    assert collated(short, pad_token_id=9, longest=5)["input_ids"].shape == (2, 5)
    assert collated(short[:1], pad_token_id=9, longest=100)["input_ids"].tolist() == [[1, 2, 3]]


def test_padded_labels_of_tokens_are_ignored() -> None:
    rows = [Example({"input_ids": t}, t, None) for t in (torch.tensor([1, 2]), torch.tensor([3]))]
    assert collated(rows, pad_token_id=0, longest=2)["labels"].tolist() == [[1, 2], [3, -100]]


def test_buckets_hold_every_example_once_shortest_first() -> None:
    torch.manual_seed(0)
    examples = [example(*range(int(n)), label=i) for i, n in enumerate(torch.randint(1, 50, (37,)))]
    batches = length_bucketed(examples, 8, pad_token_id=0)
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == [*range(37)]
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 8, 8, 5]


def test_without_labels_there_are_none() -> None:
    (alone,) = examples_of([{"input_ids": torch.tensor([[1, 2]])}])
    assert "labels" not in collated([alone], pad_token_id=0, longest=2)


def test_repeated_examples_are_dropped_where_they_can_be_told() -> None:
    known = [example(1, number=4), example(2, number=5), example(1, number=4)]
    assert [row.example_id for row in distinct(known)] == [4, 5]
    assert len(distinct([example(1), example(1)])) == 2


def test_a_choice_spreads_evenly() -> None:
    assert spread_evenly(range(10), 5) == [1, 3, 5, 7, 9]
    assert spread_evenly(range(9), 1) == [4]
    assert spread_evenly(range(3), 7) == [0, 1, 2]
