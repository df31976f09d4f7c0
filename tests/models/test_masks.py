import copy

import pytest
import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models import apply_masks_, manifest_of, set_masks_, structure_of
from lightning_compress.models.masks import (
    forget_pruned_,
    masks_digest,
    masks_of,
    pack_mask,
    pruned_of,
    unpack_mask,
    zero_gradients_,
    zero_pruned_,
)


def random_masks(model):
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    return {
        f"{name}.weight": torch.rand(parameters[f"{name}.weight"].shape, generator=generator) > 0.5
        for name in structure_of(model).linear_names()
    }


def test_pruned_weights_are_zero_kept_ones_untouched_and_state_dict_keeps_its_keys(tiny_bert):
    before = copy.deepcopy(tiny_bert.state_dict())
    masks = random_masks(tiny_bert)
    set_masks_(tiny_bert, masks)
    after = tiny_bert.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        expected = torch.where(masks[name], before[name], 0.0) if name in masks else before[name]
        assert torch.equal(value, expected)


def test_apply_makes_revived_weights_plain_zero_again_even_infinite_ones(tiny_bert):
    masks = random_masks(tiny_bert)
    set_masks_(tiny_bert, masks)
    with torch.no_grad():
        for name, weight in tiny_bert.named_parameters():
            if name in masks:
                weight[~masks[name]] = -torch.inf
    apply_masks_(tiny_bert)
    for name, weight in tiny_bert.named_parameters():
        if name in masks:
            pruned = weight[~masks[name]]
            assert torch.equal(pruned, torch.zeros_like(pruned))
            assert not torch.signbit(pruned).any()


def test_new_masks_replace_the_edit_and_count_what_is_pruned(tiny_bert):
    masks = random_masks(tiny_bert)
    set_masks_(tiny_bert, {name: torch.ones_like(mask) for name, mask in masks.items()})
    set_masks_(tiny_bert, masks)
    (edit,) = manifest_of(tiny_bert)
    assert edit["edit"] == "mask_weights"
    for name, mask in masks.items():
        assert edit["weights"][name] == {"pruned": int((~mask).sum()), "of": mask.numel()}
    assert masks_of(tiny_bert).keys() == masks.keys()


def test_masks_of_another_model_are_refused(tiny_bert):
    with pytest.raises(InputError, match="nowhere"):
        set_masks_(tiny_bert, {"nowhere": torch.ones(2, dtype=torch.bool)})
    name = f"{structure_of(tiny_bert).linear_names()[0]}.weight"
    with pytest.raises(InputError, match=r"\(3,\)"):
        set_masks_(tiny_bert, {name: torch.ones(3, dtype=torch.bool)})
    assert masks_of(tiny_bert) == {}


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (4, 16)])
def test_packing_is_eight_a_byte_and_loses_nothing(shape):
    mask = torch.rand(shape) > 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_mask(packed, mask.shape), mask)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (700, 900), (2, 300_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeroing_takes_any_shape_and_precision(shape, dtype):
    torch.manual_seed(0)
    tensor = torch.randn(shape, dtype=dtype)
    mask = torch.rand(shape) > 0.5
    expected = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
    for order in (list(range(len(shape))), list(range(len(shape)))[::-1]):  # also transposed
        copy = tensor.clone()
        zero_pruned_(copy.permute(order), mask.permute(order))
        assert torch.equal(copy, expected)


@pytest.fixture
def masked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    mask = torch.rand(5, 6) > 0.5
    set_masks_(model, {"0.weight": mask})
    return model, mask


@pytest.mark.parametrize("bad", [1.0, -2.0, torch.inf, torch.nan])
def test_gradients_of_pruned_weights_are_zero_and_others_stay(masked, bad):
    model, mask = masked
    zero_gradients_(model)  # nothing to do yet
    model(torch.randn(3, 6)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    model[0].weight.grad[~mask] = bad
    zero_gradients_(model)
    assert torch.equal(model[0].weight.grad, torch.where(mask, before[0], 0.0))
    for parameter, grad in zip(list(model.parameters())[1:], before[1:], strict=True):
        assert torch.equal(parameter.grad, grad)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_forget_pruned_weights_alone(masked, optimizer_class):
    model, mask = masked
    options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {"amsgrad": True}
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    model(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    before = {k: torch.as_tensor(v) * 1 for k, v in optimizer.state[model[0].weight].items()}
    other = {k: torch.as_tensor(v) * 1 for k, v in optimizer.state[model[1].weight].items()}
    forget_pruned_(model, [optimizer])
    after = optimizer.state[model[0].weight]
    shaped = [key for key, value in before.items() if value.shape == mask.shape]
    assert len(shaped) == (1 if optimizer_class is torch.optim.SGD else 3)
    for key, value in before.items():
        expected = torch.where(mask, value, 0.0) if key in shaped else value
        assert torch.equal(torch.as_tensor(after[key]), expected)
    for key, value in other.items():
        assert torch.equal(torch.as_tensor(optimizer.state[model[1].weight][key]), value)


def test_digests_tell_masks_apart_whatever_their_order():
    torch.manual_seed(0)
    masks = {"a": torch.rand(5, 7) > 0.5, "b": torch.rand(9) > 0.5}
    digest = masks_digest(masks)
    assert 0 <= digest < 2**63
    assert masks_digest({"b": masks["b"], "a": masks["a"].clone()}) == digest
    masks["a"][4, 6] ^= True
    assert masks_digest(masks) != digest
    assert masks_digest({"a": masks["b"]}) != masks_digest({"b": masks["b"]})


def test_pruned_entries_are_counted_by_weight():
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    masks = {"a": torch.tensor([[True, False, True], [False, False, True]])}
    assert pruned_of(masks, weights) == {"a": (3, 6), "b": (0, 4)}
