import pytest
import torch
from torch.nn.utils import prune

from lightning_compress.errors import InputError
from lightning_compress.pruning import kth_smallest as threshold
from lightning_compress.pruning.kth_smallest import drop_smallest_


def full_masks(weights):
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def sorted_reference(masks, weights, count):
    """Sort all candidates, smallest first and of equals the later first; clear the first ones."""
    magnitudes = torch.cat([weight.double().abs().flatten() for weight in weights.values()])
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    candidates = flat.nonzero().flatten().tolist()
    order = sorted(candidates, key=lambda i: (float(magnitudes[i]), -i))
    flat[order[:count]] = False
    pieces = flat.split([mask.numel() for mask in masks.values()])
    return {
        name: piece.view(mask.shape)
        for (name, mask), piece in zip(masks.items(), pieces, strict=True)
    }


def assert_same(masks, expected):
    assert masks.keys() == expected.keys()
    for name in expected:
        assert torch.equal(masks[name], expected[name])


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(40, 30), "b": 0.1 * torch.randn(13, 7), "c": torch.randn(3)}


@pytest.mark.parametrize("count", [0, 1, 2, 647, 1200, 1293, 1294])
def test_clears_what_a_full_sort_would(weights, count):
    masks = full_masks(weights)
    drop_smallest_(masks, weights, count)
    assert_same(masks, sorted_reference(full_masks(weights), weights, count))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 500, 1100])
def test_half_precision_has_many_ties_and_keeps_the_earlier(weights, dtype, count):
    halves = {name: weight.to(dtype) for name, weight in weights.items()}
    masks = full_masks(halves)
    drop_smallest_(masks, halves, count)
    assert_same(masks, sorted_reference(full_masks(halves), halves, count))


def test_precisions_compare_with_one_another(weights):
    mixed = {"a": weights["a"].half(), "b": weights["b"].bfloat16(), "c": weights["c"]}
    masks = full_masks(mixed)
    drop_smallest_(masks, mixed, 700)
    assert_same(masks, sorted_reference(full_masks(mixed), mixed, 700))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 1e-42, 3e38])
@pytest.mark.parametrize("count", [1, 60, 119])
def test_of_equal_magnitudes_the_later_ones_are_cleared(value, count):
    weights = {"a": torch.full((7, 11), value), "b": torch.full((43,), -value)}
    masks = full_masks(weights)
    drop_smallest_(masks, weights, count)
    flat = torch.cat([masks["a"].flatten(), masks["b"]])
    assert flat.tolist() == [True] * (120 - count) + [False] * count


@pytest.mark.parametrize("count", [1, 100, 300])
def test_only_candidates_take_part_and_kept_zeros_rank_above_pruned_ones(weights, count):
    candidates = {name: torch.rand(weight.shape) > 0.6 for name, weight in weights.items()}
    for name, weight in weights.items():
        weight[~candidates[name]] = 0.0
        weight.view(-1)[::5] = 0.0  # some candidates are exactly zero too
    masks = {name: mask.clone() for name, mask in candidates.items()}
    drop_smallest_(masks, weights, count)
    assert_same(masks, sorted_reference(candidates, weights, count))


@pytest.mark.parametrize(("chunk", "sample"), [(16, 8), (8, 1), (100, 1 << 20)])
@pytest.mark.parametrize("count", [1, 300, 1290])
def test_result_depends_neither_on_the_chunks_nor_on_the_sample(
    weights, count, chunk, sample, monkeypatch
):
    monkeypatch.setattr(threshold, "_CHUNK", chunk)
    monkeypatch.setattr(threshold, "_SAMPLE", sample)
    masks = full_masks(weights)
    drop_smallest_(masks, weights, count)
    assert_same(masks, sorted_reference(full_masks(weights), weights, count))


def test_a_misleading_sample_is_detected(monkeypatch):
    monkeypatch.setattr(threshold, "_SAMPLE", 100)
    weights = {"a": torch.rand(1000)}
    weights["a"][:: 1000 // 100 | 1] = 1e9  # all that the sample sees
    masks = full_masks(weights)
    drop_smallest_(masks, weights, 400)
    assert_same(masks, sorted_reference(full_masks(weights), weights, 400))


def test_transposed_weights_keep_their_own_order(weights):
    turned = {name: weight.t() for name, weight in weights.items()}
    masks = full_masks(turned)
    drop_smallest_(masks, turned, 600)
    assert_same(masks, sorted_reference(full_masks(turned), turned, 600))


@pytest.mark.parametrize("count", [10, 400, 1200])
def test_same_masks_as_torch_where_nothing_ties(count):
    torch.manual_seed(1)
    layers = [torch.nn.Linear(30, 40), torch.nn.Linear(7, 13)]
    weights = {str(index): layer.weight.detach().clone() for index, layer in enumerate(layers)}
    masks = full_masks(weights)
    drop_smallest_(masks, weights, count)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=count
    )
    for index, layer in enumerate(layers):
        assert torch.equal(masks[str(index)], layer.get_buffer("weight_mask").bool())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused_by_name_and_change_nothing(weights, bad):
    weights["b"][2, 3] = bad
    masks = full_masks(weights)
    with pytest.raises(InputError, match=r"'b'.*NaN or infinite"):
        drop_smallest_(masks, weights, 10)
    assert_same(masks, full_masks(weights))


def test_the_nan_of_all_bits_is_refused_too():
    weights = {"a": torch.full((9,), -1, dtype=torch.int32).view(torch.float32)}
    with pytest.raises(InputError, match="NaN"):
        drop_smallest_(full_masks(weights), weights, 3)


@pytest.mark.parametrize("count", [-1, 1295])
def test_more_than_there_is_cannot_be_dropped(weights, count):
    with pytest.raises(ValueError, match=f"{count} of 1294"):
        drop_smallest_(full_masks(weights), weights, count)
