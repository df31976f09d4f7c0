import pytest
import torch

from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.pruning.gate_gradients import gated

from ..families import ALL

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
GONE = {"heads": {0: [1, 3], 1: [0]}, "neurons": {0: [0, 5, 63], 1: list(range(1, 64, 2))}}


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[5], [9], [7]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(model, rows=slice(None)):
    with torch.no_grad():
        return model(**{name: value[rows] for name, value in batch().items()}).logits


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-10)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("alike", ["shared", "by example"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", ALL)
def test_a_gate_of_zero_removes_the_unit(tiny_model, family, kind, alike):
    model, smaller = tiny_model(family).double(), tiny_model(family).double()
    gates = {}
    for units in units_of(model, kind):
        gate = torch.ones(units.count, dtype=torch.float64)
        gate[GONE[kind][units.layer]] = 0
        gates[units.output] = gate if alike == "shared" else gate.repeat(3, 1)
    REMOVE[kind](smaller, {units.layer: GONE[kind][units.layer] for units in units_of(model, kind)})
    dense = logits(model)
    with gated(model, gates):
        assert close(logits(model), logits(smaller))
    assert not close(dense, logits(smaller))
    assert torch.equal(logits(model), dense)


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
            said = logits(model)
        assert said.dtype == dtype
        assert torch.equal(said, dense)


def test_the_hooks_are_gone_afterwards_even_if_something_went_wrong(tiny_bert):
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
