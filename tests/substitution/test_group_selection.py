import contextlib
import copy
import functools
import itertools

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from lightning_compress.errors import InputError
from lightning_compress.models.layers import remove_layers_
from lightning_compress.substitution import group_selection
from lightning_compress.substitution.group_selection import choose_groups


def without(model, layers):
    smaller = copy.deepcopy(model)
    remove_layers_(smaller, layers)
    return smaller


def slow_divergence(model, calibration, layers):
    """Of a model that has really lost the layers, text by text, without padding."""
    smaller, found = without(model, layers), []
    for batch in calibration.batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            text = ids[: int(mask.sum())][None]
            with torch.no_grad():
                whole, less = (Categorical(logits=one(text).logits[0]) for one in (model, smaller))
            found.append(float(kl_divergence(whole, less)))
    return sum(found) / len(found)


def fits(taken, groups, size, free):
    """Whether so many groups more can be placed: tries them all."""
    places = [set(range(start, start + size)) for start in range(free[0], free[-1] + 2 - size)]
    return any(
        all(not (one & other) for one, other in itertools.combinations([*chosen, taken], 2))
        for chosen in itertools.combinations(places, groups)
    )


def slow_choice(model, calibration, groups, size, free):
    chosen: list[list[int]] = []
    for left in range(groups - 1, -1, -1):
        gone = [layer for group in chosen for layer in group]
        places = [list(range(start, start + size)) for start in range(free[0], free[-1] + 2 - size)]
        places = [
            one
            for one in places
            if not set(one) & set(gone) and fits({*one, *gone}, left, size, free)
        ]
        chosen.append(
            min(places, key=lambda one: slow_divergence(model, calibration, sorted([*gone, *one])))
        )
    return sorted(chosen)


@pytest.mark.parametrize(
    ("family", "groups", "size", "keep_ends"),
    [
        ("bert", 2, 1, True),
        ("bert", 2, 2, False),
        ("bert", 2, 2, True),
        ("gpt2", 3, 1, False),
        ("distilbert", 1, 3, True),
    ],
)
def test_divergence_selection_equals_a_slow_search(
    deep, calibration_for, family, groups, size, keep_ends
):
    model = deep(family, layers=6)
    calibration = calibration_for(model)
    free = range(1, 5) if keep_ends else range(6)
    found = choose_groups(
        model,
        calibration,
        num_groups=groups,
        layers_per_group=size,
        selection="divergence",
        keep_ends=keep_ends,
    )
    assert found == slow_choice(model, calibration, groups, size, free)


def test_a_group_that_leaves_no_room_for_the_others_is_not_chosen(
    deep, calibration_for, monkeypatch
):
    model = deep(layers=8)
    # The middle ones cost nothing, and the first three may then not be split.
    gone: list[int] = []

    @contextlib.contextmanager
    def skip(model, layers):
        gone[:] = layers
        yield

    monkeypatch.setattr(group_selection, "skipped", skip)
    monkeypatch.setattr(
        group_selection, "divergence_from", lambda *_: sum((layer - 3.6) ** 2 for layer in gone)
    )
    choose = functools.partial(
        choose_groups, model, calibration_for(model), selection="divergence", keep_ends=True
    )
    assert choose(num_groups=1, layers_per_group=2) == [[3, 4]]
    assert choose(num_groups=3, layers_per_group=2) == [[1, 2], [3, 4], [5, 6]]
    assert choose(num_groups=2, layers_per_group=3) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("layers", "groups", "size", "keep_ends", "wanted"),
    [
        (12, 1, 1, True, [[5]]),
        (12, 2, 1, True, [[1], [10]]),
        (12, 5, 2, True, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]),
        (12, 3, 2, True, [[1, 2], [5, 6], [9, 10]]),
        (12, 3, 3, False, [[0, 1, 2], [4, 5, 6], [9, 10, 11]]),
        (6, 3, 1, True, [[1], [2], [4]]),
        (4, 2, 1, True, [[1], [2]]),
        (3, 1, 1, True, [[1]]),
        (2, 1, 1, False, [[0]]),
    ],
)
def test_even_selection(deep, calibration_for, layers, groups, size, keep_ends, wanted):
    model = deep(layers=layers, hidden_size=8, num_attention_heads=1)
    found = choose_groups(
        model,
        calibration_for(model),
        num_groups=groups,
        layers_per_group=size,
        selection="even",
        keep_ends=keep_ends,
    )
    assert found == wanted


@pytest.mark.parametrize("layers", [5, 9, 12])
@pytest.mark.parametrize("keep_ends", [True, False])
def test_even_groups_do_not_overlap_and_stay_in_range(deep, calibration_for, layers, keep_ends):
    model = deep(layers=layers, hidden_size=8, num_attention_heads=1)
    calibration = calibration_for(model)
    free = set(range(1, layers - 1)) if keep_ends else set(range(layers))
    tried = 0
    for groups, size in itertools.product(range(1, layers), repeat=2):
        if groups * size > len(free) or groups * size == layers:
            continue
        tried += 1
        found = choose_groups(
            model,
            calibration,
            num_groups=groups,
            layers_per_group=size,
            selection="even",
            keep_ends=keep_ends,
        )
        taken = [layer for group in found for layer in group]
        assert len(found) == groups
        assert all(group == list(range(group[0], group[0] + size)) for group in found)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= free
        gaps = [after[0] - before[-1] for before, after in itertools.pairwise(found)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert tried >= 5


@pytest.mark.parametrize("by", ["even", "divergence"])
@pytest.mark.parametrize(
    ("groups", "size", "keep_ends", "message"),
    [
        (4, 1, True, "4 groups of 1 cannot be chosen from 5 layers, of which the first and"),
        (2, 2, True, "2 groups of 2 cannot be chosen from 5 layers, of which"),
        (2, 3, False, "2 groups of 3 cannot be chosen from 5 layers$"),
        (0, 1, True, "0 groups of 1 cannot be chosen"),
        (1, 0, True, "1 groups of 0 cannot be chosen"),
        (5, 1, False, "5 groups of 1 are all 5 layers, which leaves no choice.*name them"),
        (1, 5, False, "1 groups of 5 are all 5 layers"),
    ],
)
def test_impossible_selections_are_refused(
    deep, calibration_for, by, groups, size, keep_ends, message
):
    model = deep()
    with pytest.raises(InputError, match=message):
        choose_groups(
            model,
            calibration_for(model),
            num_groups=groups,
            layers_per_group=size,
            selection=by,
            keep_ends=keep_ends,
        )
