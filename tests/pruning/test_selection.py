"""Budgets, costs, selection and rearrangement of heads and neurons."""

from itertools import combinations, product

import pytest
import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.models import remove_heads_, remove_neurons_
from lightning_compress.models.families import UnitKind
from lightning_compress.models.structure import Units
from lightning_compress.pruning.selection import (
    LayerMinimum,
    rearrange,
    select_units,
    total_cost,
    unit_macs,
)
from lightning_compress.substitution.edit import substitute_layers_

from .conftest import all_units

TOKENS = 8
BATCH = {"input_ids": torch.randint(2, 100, (2, TOKENS))}
REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


FREE: dict[UnitKind, LayerMinimum] = {"heads": LayerMinimum(), "neurons": LayerMinimum()}


def units_with(heads=(), neurons=()):
    """``heads=[4, 4]``: two layers of four heads each."""
    counts: dict[UnitKind, list[int]] = {"heads": heads, "neurons": neurons}
    return [
        Units(kind, layer, (), f"{kind}.{layer}", 1, count)
        for kind, layers in counts.items()
        for layer, count in enumerate(layers)
    ]


def priced(units, costs):
    """Costs by kind, as costs by projection."""
    return {one.output: costs[one.kind] for one in units}


def random_scores(units, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {u.output: torch.rand(u.count, generator=generator, dtype=torch.float64) for u in units}


def flat(removed):
    return {
        (kind, layer, u)
        for kind in removed
        for layer in removed[kind]
        for u in removed[kind][layer]
    }


def spent(units, removed, costs):
    everything = sum(costs[one.kind] * one.count for one in units)
    return everything - sum(costs[kind] for kind, _, _ in flat(removed))


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_costs_the_least_important_units_are_removed(seed):
    units = units_with(heads=[4, 3, 5])
    scores = random_scores(units, seed)
    everything = {
        ("heads", one.layer, unit): float(scores[one.output][unit])
        for one in units
        for unit in range(one.count)
    }
    for stay in (3, 5, 8, 11, 12):
        removed = select_units(units, scores, priced(units, {"heads": 2.5}), 2.5 * stay, FREE)
        # Every layer keeps one unit; otherwise the smallest of all are removed.
        whole = [set(combination) for combination in combinations(everything, 12 - stay)]
        allowed = [
            chosen
            for chosen in whole
            if all(one.count > sum(layer == one.layer for _, layer, _ in chosen) for one in units)
        ]
        best = min(allowed, key=lambda chosen: sum(everything[unit] for unit in chosen))
        assert flat(removed) == best
        # A budget that lies between two numbers of units is met, not missed by one.
        if stay < 12:
            more = select_units(units, scores, priced(units, {"heads": 2.5}), 2.5 * stay + 1, FREE)
            assert flat(more) == best


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("share", [0.07, 0.3, 0.5, 0.81, 0.99])
@pytest.mark.parametrize(
    ("minimum", "multiple"), [(1, 1), (8, 8), (1, 8), (9, 8), (20, 1), (5, 6), (2, 172)]
)
def test_budget_and_minimums_hold_and_no_chunk_is_removed_in_vain(minimum, multiple, share, equal):
    units = units_with(heads=[12, 12, 4], neurons=[172, 170, 64, 5])
    scores = random_scores(units, minimum)
    if equal:  # the worst case for an order
        scores = {name: torch.full_like(values, 0.1) for name, values in scores.items()}
    costs: dict[UnitKind, float] = {"heads": 7.3, "neurons": 1.1}
    minimums: dict[UnitKind, LayerMinimum] = {
        "heads": LayerMinimum(2, 2),
        "neurons": LayerMinimum(minimum, multiple),
    }
    least = {}
    for one in units:
        kept = minimums[one.kind]
        fits = [
            n
            for n in range(one.count + 1)
            if n >= kept.minimum and (n == one.count or n % kept.multiple == 0)
        ]
        least[one.output] = min(fits, default=one.count)
    total = sum(costs[one.kind] * one.count for one in units)
    budget = share * total
    if sum(costs[one.kind] * least[one.output] for one in units) > budget:
        with pytest.raises(InputError, match="budget cannot be met"):
            select_units(units, scores, priced(units, costs), budget, minimums)
        return
    removed = select_units(units, scores, priced(units, costs), budget, minimums)
    assert spent(units, removed, costs) <= budget * (1 + 1e-8)
    last_chunks = []
    for one in units:
        chosen = removed[one.kind].get(one.layer, [])
        assert len(set(chosen)) == len(chosen)
        rest, kept = one.count - len(chosen), minimums[one.kind]
        assert rest >= least[one.output]
        if chosen:
            assert rest % kept.multiple == 0
            # Only the lowest of a layer go.
            stay = [unit for unit in range(one.count) if unit not in chosen]
            values = scores[one.output]
            assert not stay or values[chosen].max() <= values[stay].min()
            first = one.count % kept.multiple or kept.multiple
            size = first if len(chosen) == first else kept.multiple
            last = values.sort().values[len(chosen) - size : len(chosen)]
            last_chunks.append((float(last.sum()) / size / costs[one.kind], size, one.kind))
    # Without the portion of the highest price the budget would be missed.
    if last_chunks:
        highest = max(price for price, _, _ in last_chunks)
        dearest = [chunk for chunk in last_chunks if chunk[0] == pytest.approx(highest, rel=1e-9)]
        assert any(
            spent(units, removed, costs) + size * costs[kind] > budget for _, size, kind in dearest
        )
    else:
        assert total <= budget


def test_a_layer_is_brought_to_a_multiple_by_the_first_removal():
    units = units_with(neurons=[172, 172])
    scores = random_scores(units)
    minimums: dict[UnitKind, LayerMinimum] = {"neurons": LayerMinimum(8, 8)}
    sizes = set()
    for budget in range(16, 345):
        removed = select_units(units, scores, priced(units, {"neurons": 1}), budget, minimums)[
            "neurons"
        ]
        sizes |= {172 - len(chosen) for chosen in removed.values()}
    assert sizes == set(range(8, 169, 8))
    with pytest.raises(InputError, match="budget cannot be met"):
        select_units(units, scores, priced(units, {"neurons": 1}), 15, minimums)


@pytest.mark.parametrize("seed", range(5))
def test_heads_and_neurons_trade_by_what_a_saved_cost_loses(seed):
    units = units_with(heads=[4, 4], neurons=[16, 16])
    costs: dict[UnitKind, float] = {"heads": 10.0, "neurons": 1.5}
    scores = random_scores(units, seed)
    for one in units:
        scores[one.output] *= costs[one.kind]
    order = sorted(
        (float(scores[one.output][unit]) / costs[one.kind], one.kind, one.layer, unit)
        for one in units
        for unit in range(one.count)
        if scores[one.output][unit] < scores[one.output].max()  # the best of a layer stays
    )
    left = total = 2 * (4 * 10 + 16 * 1.5)
    for number, (_, kind, _, _) in enumerate(order, 1):
        left -= costs[kind]
        removed = select_units(units, scores, priced(units, costs), left, FREE)
        assert flat(removed) == {tuple(unit) for _, *unit in order[:number]}
    kinds = [kind for kind, _, _ in (entry[1:] for entry in order[:20])]
    assert len(set(kinds)) == 2
    # Ten times dearer heads go first, at the same scores.
    removed = select_units(
        units, scores, priced(units, {"heads": 1e6, "neurons": 1e-3}), 4e6 + 1, FREE
    )
    assert {kind for kind, _, _ in flat(removed)} == {"heads"}
    assert total == 128


def test_cheaper_units_of_a_narrow_layer_are_removed_later():
    """At equal scores the costliest are removed first, and the budget counts each cost."""
    units = units_with(neurons=[8, 8])
    scores = {one.output: torch.ones(8) for one in units}
    costs = {"neurons.0": 1.0, "neurons.1": 4.0}
    for budget, wide, narrow in ((36, 1, 0), (12, 7, 0), (10, 7, 2), (5, 7, 7)):
        removed = select_units(units, scores, costs, budget, {"neurons": LayerMinimum()})["neurons"]
        assert (len(removed.get(1, [])), len(removed.get(0, []))) == (wide, narrow)


def test_an_impossible_budget_is_refused_with_both_fractions():
    units = units_with(heads=[4, 4], neurons=[64, 64])
    costs: dict[UnitKind, float] = {"heads": 16, "neurons": 1}
    minimums: dict[UnitKind, LayerMinimum] = {
        "heads": LayerMinimum(2),
        "neurons": LayerMinimum(16, 8),
    }
    with pytest.raises(InputError, match=r"costs 37\.5% .* more than the 20\.0% asked for"):
        select_units(units, random_scores(units), priced(units, costs), 0.2 * 256, minimums)
    removed = select_units(units, random_scores(units), priced(units, costs), 0.375 * 256, minimums)
    assert len(flat(removed)) == 4 + 96


@pytest.mark.parametrize("budget", [8.0, 8.0 - 1e-12, 100.0])
def test_within_the_budget_nothing_is_removed(budget):
    units = units_with(heads=[4, 4])
    removed = select_units(
        units,
        random_scores(units),
        priced(units, {"heads": 1.0}),
        budget,
        {"heads": LayerMinimum()},
    )
    assert removed == {"heads": {}}


@pytest.mark.parametrize(("numbers", "name"), [((0, 1), "minimum"), ((1, 0), "multiple")])
def test_minimums_below_one_are_refused(numbers, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
        LayerMinimum(*numbers)


def test_scores_that_are_not_finite_are_refused():
    units = units_with(heads=[4, 4])
    scores = random_scores(units)
    scores["heads.1"][2] = torch.nan
    with pytest.raises(InputError, match=r"scores of heads in layer 1 are not finite"):
        select_units(units, scores, priced(units, {"heads": 1.0}), 6, FREE)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_the_macs_of_a_unit_are_what_torch_counts_less_without_it(tiny_model, family):
    """Where narrow layers stand between wide ones, too."""
    model = tiny_model(family)
    substitute_layers_(model, [[1]], width=16)
    units = all_units(model)
    costs = unit_macs(model, units, TOKENS)
    for one in units:
        before = count_macs(model, BATCH)
        REMOVE[one.kind](model, {one.layer: [0]})
        assert before - count_macs(model, BATCH) == costs[one.output]


def test_all_units_together_have_the_macs_of_the_blocks(tiny_bert):
    units = all_units(tiny_bert)
    found = total_cost(units, unit_macs(tiny_bert, units, TOKENS))
    whole = count_macs(tiny_bert, BATCH)
    tiny_bert.bert.encoder.layer = nn.ModuleList()
    assert found == whole - count_macs(tiny_bert, BATCH) > 0


def loss_without(gradients, removed):
    """The slow way: square the sum of the gradients of the removed units, example by example."""
    return sum(float(sum(row[unit] for unit in removed)) ** 2 for row in gradients)


def test_units_that_compensate_each_other_are_removed_together():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    gradients[:, 4] = -gradients[:, 1] * 1.01
    assert rearrange(gradients, [0, 2]) == [1, 4]


@pytest.mark.parametrize("seed", range(5))
def test_no_single_swap_helps_and_few_choices_are_better(seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(20, 8, generator=generator) + torch.randn(8, generator=generator)
    start = gradients.square().mean(0).argsort()[:4].tolist()
    found = rearrange(gradients, start)
    least = loss_without(gradients, found)
    assert len(found) == 4
    assert least <= loss_without(gradients, start) * (1 + 1e-6)
    for out, back in product(found, set(range(8)) - set(found)):
        swapped = [unit for unit in found if unit != out] + [back]
        assert loss_without(gradients, swapped) >= least * (1 - 1e-6)


def test_nothing_and_everything_stay_as_they_are():
    gradients = torch.randn(5, 3)
    assert rearrange(gradients, []) == []
    assert rearrange(gradients, [0, 1, 2]) == [0, 1, 2]
