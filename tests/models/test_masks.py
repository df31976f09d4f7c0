import copy

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models import apply_masks_, manifest_of, set_masks_, structure_of
from lightning_compress.models.masks import masks_of, pack_mask, unpack_mask, zero_pruned_


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
