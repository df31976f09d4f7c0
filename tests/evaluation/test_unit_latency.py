import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress.evaluation import latency as unit_latency
from lightning_compress.evaluation.latency import seconds_per_unit
from lightning_compress.models import manifest_of, structure_of, units_of
from lightning_compress.substitution.edit import substitute_layers_

BATCH = {"input_ids": torch.randint(2, 100, (2, 8))}


def both(model):
    return [*units_of(model, "heads"), *units_of(model, "neurons")]


def test_narrow_layers_are_timed_by_themselves(tiny_model, monkeypatch):
    """A clock by which everything takes as long as it has inputs."""
    model = tiny_model("bert", num_hidden_layers=4)
    substitute_layers_(model, [[1], [2]], width=16)
    timed: list[PreTrainedModel] = []

    def clock(candidates, *, seconds):
        found = []
        for (call,) in candidates:
            call()
            taken = sum(one.count * model_width(timed[-1], one) for one in both(timed[-1]))
            found.append(torch.tensor([[taken]], dtype=torch.float64))
        return found

    def model_width(model, one):
        return model.get_submodule(one.inputs[0]).in_features

    monkeypatch.setattr(
        unit_latency, "logits_by", lambda model, call: lambda **_: timed.append(model)
    )
    monkeypatch.setattr(unit_latency, "interleaved_times", clock)
    units = both(model)
    assert {model_width(model, one) for one in units} == {16, 32}
    assert seconds_per_unit(model, BATCH, units) == {
        one.output: pytest.approx(model_width(model, one)) for one in units
    }
    # Each layer that stands for others was alone.
    assert {len(structure_of(one).layers) for one in timed} == {1}


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "llama"])
def test_the_slope_of_time_over_units_is_found(tiny_model, family, monkeypatch):
    """A clock that takes 5 s, 3 s more for a head and 0.25 s more for a neuron, in each layer."""
    timed = []

    def logits_by(model, call):
        return lambda **inputs: timed.append(model)

    def clock(candidates, *, seconds):
        found = []
        for (call,) in candidates:
            call()
            heads, neurons = (
                sum(one.count for one in units_of(timed[-1], kind)) for kind in ("heads", "neurons")
            )
            found.append(torch.tensor([[5 + 3 * heads + 0.25 * neurons]], dtype=torch.float64))
        return found

    monkeypatch.setattr(unit_latency, "logits_by", logits_by)
    monkeypatch.setattr(unit_latency, "interleaved_times", clock)
    model = tiny_model(family)
    units = both(model)
    slopes = seconds_per_unit(model, BATCH, units)
    assert slopes == {
        one.output: pytest.approx(3 if one.kind == "heads" else 0.25) for one in units
    }
    assert manifest_of(model) == []
    assert {one.count for one in units_of(model, "heads")} == {4}


def test_real_times_give_numbers_that_are_not_negative(tiny_bert):
    units = both(tiny_bert)
    slopes = seconds_per_unit(tiny_bert, BATCH, units, seconds=0.01)
    assert slopes.keys() == {one.output for one in units}
    assert all(slope >= 0 for slope in slopes.values())
    assert not tiny_bert.training
