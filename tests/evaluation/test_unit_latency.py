import pytest
import torch

from lightning_compress.evaluation import unit_latency
from lightning_compress.evaluation.unit_latency import seconds_per_unit
from lightning_compress.models import manifest_of, units_of

BATCH = {"input_ids": torch.randint(2, 100, (2, 8))}


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
    slopes = seconds_per_unit(model, BATCH, ["heads", "neurons"])
    assert slopes == {"heads": pytest.approx(3), "neurons": pytest.approx(0.25)}
    assert manifest_of(model) == []
    assert {one.count for one in units_of(model, "heads")} == {4}


def test_real_times_give_numbers_that_are_not_negative(tiny_bert):
    slopes = seconds_per_unit(tiny_bert, BATCH, ["heads", "neurons"], seconds=0.01)
    assert slopes.keys() == {"heads", "neurons"}
    assert all(slope >= 0 for slope in slopes.values())
    assert not tiny_bert.training
