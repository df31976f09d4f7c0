import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_compress.models import units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import output_dim
from lightning_compress.pruning.gate_gradients import gate_gradients

from ..families import ALL

EPSILON = 1e-4


def lively(model):
    """Weights as large as after training, biases that are not zero; in float64."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.double()
    # Llama's own norm computes in float32, too coarse for differences.
    for name, module in list(model.named_modules()):
        if name.endswith("norm") and hasattr(module, "variance_epsilon"):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
            norm.weight = module.weight
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, norm)
    return model


def batch(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(2, 100, (len(lengths), 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(2, (len(lengths),), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def looking(model):
    return Calibration(
        [batch([4, 9, 6]), batch([7, 3, 9, 5])],
        lambda batch: model(**batch).loss,
        lambda batch: model(**batch).logits,
    )


def all_units(model):
    return [*units_of(model, "heads"), *units_of(model, "neurons")]


@torch.no_grad()
def losses(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["labels"], reduction="none")


@torch.no_grad()
def slope(model, batch, units, unit):
    """How each example's loss changes when the outgoing weights of a unit grow."""
    module = model.get_submodule(units.output)
    columns = module.weight if output_dim(module) else module.weight.T
    width = len(columns) // units.count
    mine = columns[unit * width : (unit + 1) * width]
    before, found = mine.clone(), []
    for step in (EPSILON, -EPSILON):
        mine.copy_(before * (1 + step))
        found.append(losses(model, batch))
    mine.copy_(before)
    return (found[0] - found[1]) / (2 * EPSILON)


@pytest.mark.parametrize("family", ALL)
def test_gradients_are_those_of_each_example_s_own_loss(tiny_model, family):
    model = lively(tiny_model(family))
    units, calibration = all_units(model), looking(model)
    gradients = list(gate_gradients(model, units, calibration))
    assert [set(found) for found in gradients] == [{one.output for one in units}] * 2
    for found, batch in zip(gradients, calibration.batches, strict=True):
        for one in units:
            assert found[one.output].shape == (len(batch["labels"]), one.count)
            for unit in range(0, one.count, 1 if one.kind == "heads" else 9):
                expected = slope(model, batch, one, unit).float()
                assert torch.allclose(found[one.output][:, unit], expected, rtol=1e-5, atol=1e-7)
                assert expected.abs().max() > 1e-5


def test_the_parameters_get_no_gradients_and_need_none(tiny_bert):
    model = lively(tiny_bert)
    units, calibration = all_units(model), looking(model)
    expected = list(gate_gradients(model, units, calibration))
    assert all(weight.grad is None for weight in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = list(gate_gradients(model, units, calibration))
    assert len(frozen) == 2
    for one, other in zip(expected, frozen, strict=True):
        assert all(torch.allclose(one[name], other[name]) for name in one)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_gradients_that_are_there_already_stay_as_they_are(tiny_bert):
    calibration = looking(tiny_bert)
    calibration.loss(calibration.batches[0]).backward()
    before = [weight.grad.clone() for weight in tiny_bert.parameters()]
    list(gate_gradients(tiny_bert, all_units(tiny_bert), calibration))
    after = [weight.grad for weight in tiny_bert.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_half_precision_is_enough_for_gradients(tiny_bert):
    model = lively(tiny_bert)
    units, calibration = all_units(model), looking(model)
    expected = list(gate_gradients(model, units, calibration))
    model.bfloat16()
    for one, other in zip(gate_gradients(model, units, calibration), expected, strict=True):
        for name in one:
            assert functional.cosine_similarity(one[name], other[name], dim=1).min() > 0.95
