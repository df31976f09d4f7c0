"""Gates on heads and neurons, and the gradients of each example's loss by them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_compress.models import units_of
from lightning_compress.models.structure import output_dim
from lightning_compress.pruning.gate_gradients import gate_gradients, gated

from ..families import ALL, randomize_
from .conftest import LENGTHS, all_units, calibration_of


def three_examples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[5], [9], [7]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(model, rows=slice(None)):
    with torch.no_grad():
        return model(**{name: value[rows] for name, value in three_examples().items()}).logits


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-10)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", ALL)
def test_every_example_has_gates_of_its_own(tiny_model, family):
    model = tiny_model(family).double()
    generator = torch.Generator().manual_seed(2)
    gates = {
        units.output: 2 * torch.rand(3, units.count, generator=generator, dtype=torch.float64)
        for kind in ("heads", "neurons")
        for units in units_of(model, kind)
    }
    dense = logits(model)
    with gated(model, gates):
        together = logits(model)
    for row in range(3):
        with gated(model, {name: gate[row] for name, gate in gates.items()}):
            assert close(logits(model, slice(row, row + 1))[0], together[row])
            # and the gates of others are not its own
            assert not close(logits(model)[row - 1], together[row - 1])
    assert not close(dense, together)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ALL)
def test_gates_of_one_change_nothing_in_any_precision(tiny_model, family, dtype):
    model = tiny_model(family).to(dtype)
    dense = logits(model)
    for shape in ((), (3,)):
        gates = {
            units.output: torch.ones(*shape, units.count)
            for kind in ("heads", "neurons")
            for units in units_of(model, kind)
        }
        with gated(model, gates):
            output = logits(model)
        assert output.dtype == dtype
        assert torch.equal(output, dense)


def test_the_hooks_are_removed_even_after_an_error(tiny_bert):
    gates = {units.output: torch.zeros(4) for units in units_of(tiny_bert, "heads")}
    dense = logits(tiny_bert)
    with gated(tiny_bert, gates):
        assert hooks_of(tiny_bert) == 2
    assert hooks_of(tiny_bert) == 0

    def fail():
        with gated(tiny_bert, gates):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    assert hooks_of(tiny_bert) == 0
    assert torch.equal(logits(tiny_bert), dense)


EPSILON = 1e-4


def randomized(model):
    """Weights as large as after training, in float64."""
    randomize_(model).double()
    # Llama's own norm computes in float32, too coarse for differences.
    for name, module in list(model.named_modules()):
        if name.endswith("norm") and hasattr(module, "variance_epsilon"):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
            norm.weight = module.weight
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, norm)
    return model


def labelled_batch(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(2, 100, (len(lengths), 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(2, (len(lengths),), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def labelled_batches():
    return [labelled_batch(lengths) for lengths in LENGTHS]


@torch.no_grad()
def losses(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["labels"], reduction="none")


@torch.no_grad()
def slope(model, batch, units, unit, epsilon=EPSILON):
    """How each example's loss changes when the outgoing weights of a unit grow."""
    module = model.get_submodule(units.output)
    columns = module.weight if output_dim(module) else module.weight.T
    width = len(columns) // units.count
    mine = columns[unit * width : (unit + 1) * width]
    before, found = mine.clone(), []
    for step in (epsilon, -epsilon):
        mine.copy_(before * (1 + step))
        found.append(losses(model, batch))
    mine.copy_(before)
    return (found[0] - found[1]) / (2 * epsilon)


@pytest.mark.parametrize("family", ALL)
def test_gradients_are_those_of_each_example_s_own_loss(tiny_model, family):
    model = randomized(tiny_model(family))
    units, calibration = all_units(model), calibration_of(model, labelled_batches())
    gradients = list(gate_gradients(model, units, calibration))
    assert [set(found) for found in gradients] == [{one.output for one in units}] * 2
    for found, batch in zip(gradients, calibration.batches, strict=True):
        for one in units:
            assert found[one.output].shape == (len(batch["labels"]), one.count)
            for unit in range(0, one.count, 1 if one.kind == "heads" else 9):
                # Parts of the latter compute in float32: a larger step, and its error.
                coarse = family in ("gemma", "modernbert")
                expected = slope(model, batch, one, unit, 1e-2 if coarse else EPSILON).float()
                rtol, atol = (1e-2, 1e-3) if coarse else (1e-5, 1e-7)
                assert torch.allclose(found[one.output][:, unit], expected, rtol=rtol, atol=atol)
                assert expected.abs().max() > 1e-5


def test_the_parameters_get_no_gradients_and_need_none(tiny_bert):
    model = randomized(tiny_bert)
    units, calibration = all_units(model), calibration_of(model, labelled_batches())
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
    calibration = calibration_of(tiny_bert, labelled_batches())
    calibration.loss(calibration.batches[0]).backward()
    before = [weight.grad.clone() for weight in tiny_bert.parameters()]
    list(gate_gradients(tiny_bert, all_units(tiny_bert), calibration))
    after = [weight.grad for weight in tiny_bert.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_half_precision_is_enough_for_gradients(tiny_bert):
    model = randomized(tiny_bert)
    units, calibration = all_units(model), calibration_of(model, labelled_batches())
    expected = list(gate_gradients(model, units, calibration))
    model.bfloat16()
    for one, other in zip(gate_gradients(model, units, calibration), expected, strict=True):
        for name in one:
            assert functional.cosine_similarity(one[name], other[name], dim=1).min() > 0.95
