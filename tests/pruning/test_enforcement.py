import pytest
import torch
from torch import nn

from lightning_compress.models import set_masks_
from lightning_compress.models.masks import forget_pruned_, masks_digest, pruned_of, zero_gradients_


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
