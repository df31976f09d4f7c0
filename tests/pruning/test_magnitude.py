import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.pruning.magnitude import NM, magnitude_masks, target_sparsity


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(16, 24), "b": 0.3 * torch.randn(24, 8), "c": torch.randn(4, 4)}


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def by_sorting(weights, count):
    """The masks by one full sort in float64."""
    flat = torch.cat([weight.double().abs().flatten() for weight in weights.values()])
    keep = torch.ones(flat.numel(), dtype=torch.bool)
    keep[flat.argsort()[:count]] = False
    sizes = [weight.numel() for weight in weights.values()]
    return {
        name: piece.view(weights[name].shape)
        for name, piece in zip(weights, keep.split(sizes), strict=True)
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.5, 0.8, 0.999, 1.0])
def test_global_sparsity_is_exact_and_prunes_the_smallest_of_all(weights, sparsity):
    masks = magnitude_masks(weights, sparsity)
    total = sum(weight.numel() for weight in weights.values())
    expected = by_sorting(weights, round(sparsity * total))
    assert all(torch.equal(masks[name], expected[name]) for name in weights)
    assert zeros(masks) == round(sparsity * total)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 1.0])
def test_layer_sparsity_is_exact_in_each(weights, sparsity):
    masks = magnitude_masks(weights, sparsity, scope="layer")
    for name, weight in weights.items():
        expected = by_sorting({name: weight}, round(sparsity * weight.numel()))[name]
        assert torch.equal(masks[name], expected)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("pattern", [None, NM(2, 4)])
def test_what_is_pruned_never_comes_back(weights, scope, pattern):
    masks: dict[str, torch.Tensor] = {}
    for sparsity in (0.1, 0.3, 0.2, 0.5):
        before = {name: mask.clone() for name, mask in masks.items()}
        # The weights move, even those that are pruned.
        weights = {name: weight + torch.randn_like(weight) for name, weight in weights.items()}
        after = magnitude_masks(weights, sparsity, masks=masks, scope=scope, pattern=pattern)
        for name, mask in before.items():
            assert torch.equal(masks[name], mask)  # the argument is not changed
            assert not (after[name] & ~mask).any()
        total = sum(weight.numel() for weight in weights.values())
        assert zeros(after) == max(round(sparsity * total), zeros(before))
        masks = after


def test_earlier_masks_count_toward_the_target_and_a_missing_name_is_dense(weights):
    first = torch.zeros_like(weights["a"], dtype=torch.bool)
    masks = magnitude_masks(weights, 0.7, masks={"a": first, "other": torch.ones(3).bool()})
    assert masks.keys() == weights.keys()
    assert not masks["a"].any()
    assert zeros(masks) == round(0.7 * (16 * 24 + 24 * 8 + 16))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_pattern_is_reached_exactly_through_sparser_steps(weights, scope):
    pattern = NM(1, 4)
    masks: dict[str, torch.Tensor] = {}
    for sparsity in (0.2, 0.6, pattern.sparsity):
        outside = {
            name: pattern.outside(weight, masks.get(name, torch.ones_like(weight).bool()))
            for name, weight in weights.items()
        }
        masks = magnitude_masks(weights, sparsity, masks=masks, scope=scope, pattern=pattern)
        # Nothing of the n largest of a group is pruned on the way.
        assert all((masks[name] | outside[name]).all() for name in weights)
        total = sum(weight.numel() for weight in weights.values())
        assert zeros(masks) == round(sparsity * total)
    for mask in masks.values():
        assert (mask.view(mask.shape[0], -1, 4).sum(-1) == 1).all()


def test_a_pattern_runs_along_the_inputs(weights):
    masks = magnitude_masks(weights, 0.5, pattern=NM(2, 4), input_dims={"a": 0})
    assert (masks["a"].view(4, 4, 24).sum(1) == 2).all()
    assert (masks["b"].view(24, 2, 4).sum(2) == 2).all()


def test_a_pattern_holds_even_if_earlier_masks_were_uneven(weights):
    uneven = torch.ones_like(weights["a"], dtype=torch.bool)
    uneven[:, :12] = False
    masks = magnitude_masks(weights, 0.5, masks={"a": uneven}, pattern=NM(2, 4))
    groups = masks["a"].view(16, 6, 4).sum(-1)
    assert (groups[:, :3] == 0).all()
    assert (groups[:, 3:] == 2).all()


@pytest.mark.parametrize("sparsity", [-0.01, 1.01])
def test_a_sparsity_that_is_no_fraction_is_refused(weights, sparsity):
    with pytest.raises(InputError, match="sparsity"):
        magnitude_masks(weights, sparsity)


def test_weights_that_are_parameters_and_need_gradients_are_fine(weights):
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    masks = magnitude_masks(parameters, 0.5)
    assert zeros(masks) == 296
    assert all(not mask.requires_grad for mask in masks.values())


def outside_by_loop(weight, mask, n, m):
    """For every group: rank by kept first, larger first, earlier first; all but n are outside."""
    rows, columns = weight.shape
    outside = torch.zeros(weight.shape, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, columns, m):
            group = sorted(
                range(start, start + m),
                key=lambda c: (-abs(float(weight[row, c])) if mask[row, c] else 1.0, c),
            )
            outside[row, group[n:]] = True
    return outside


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (2, 3)])
def test_the_n_largest_of_each_group_are_inside(n, m):
    torch.manual_seed(0)
    weight = torch.randn(5, 24).mul(2).round().div(2)  # rounded, so that there are ties
    mask = torch.rand(5, 24) > 0.3
    expected = outside_by_loop(weight, mask, n, m)
    assert torch.equal(NM(n, m).outside(weight, mask), expected)
    assert torch.equal(NM(n, m).outside(weight.t(), mask.t(), dim=0), expected.t())
    assert torch.equal(NM(n, m).outside(weight.half(), mask), expected)


def test_reading_and_writing():
    assert NM.parse("2:4") == NM(2, 4)
    assert str(NM(2, 4)) == "2:4"
    assert NM(1, 4).sparsity == 0.75


@pytest.mark.parametrize("text", ["", "2", "4:2", "0:4", "4:4", "2:4:8", "a:b", "-1:4", " 2:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(InputError, match=r"pattern: .* is not n:m"):
        NM.parse(text)


def test_the_target_comes_from_sparsity_or_pattern():
    assert target_sparsity(0.8, None) == 0.8
    assert target_sparsity(0.0, None) == 0.0
    assert target_sparsity(None, NM(1, 4)) == 0.75
    assert target_sparsity(0.333, NM(2, 3)) == NM(2, 3).sparsity


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 80, float("nan"), float("inf")])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(InputError, match=r"sparsity: .* not in \[0, 1\)"):
        target_sparsity(sparsity, None)


def test_no_target_and_a_contradiction_are_refused():
    with pytest.raises(InputError, match="give the fraction"):
        target_sparsity(None, None)
    with pytest.raises(InputError, match=r"0\.8 contradicts pattern: 2:4, which means 0\.5"):
        target_sparsity(0.8, NM(2, 4))
