"""A unit gated with zero, or a layer skipped, is the same as one removed; in every family."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_compress.models import remove_heads_, remove_layers_, remove_neurons_, units_of
from lightning_compress.models.layers import skipped
from lightning_compress.pruning.gate_gradients import gated

from ..families import ALL, STACKED, randomize_, tiny_model

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
REMOVED = {"heads": {0: [1, 3], 1: [0]}, "neurons": {0: [0, 5, 63], 1: list(range(1, 64, 2))}}


def build(family: str, **changes: object) -> Any:
    """A tiny model in float64 and eval mode, the same each time."""
    return randomize_(tiny_model(family, **changes)).double().eval()


def logits(model: Any) -> Tensor:
    """For three examples of different lengths: [3, C]."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[5], [9], [7]])).long()
    with torch.no_grad():
        found: Tensor = model(input_ids=ids * mask, attention_mask=mask).logits
    return found


def assert_removed(found: Tensor, smaller: Any, dense: Tensor) -> None:
    """The logits are those of the smaller model, and not those of the dense one."""
    torch.testing.assert_close(found, logits(smaller), rtol=0, atol=1e-10)
    assert not torch.allclose(found, dense, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", ALL)
def test_a_gate_of_zero_removes_the_unit(family: str, kind: Any, per_example: bool) -> None:
    model, smaller = build(family), build(family)
    gates = {}
    for units in units_of(model, kind):
        gate = torch.ones(units.count, dtype=torch.float64)
        gate[REMOVED[kind][units.layer]] = 0
        gates[units.output] = gate.repeat(3, 1) if per_example else gate
    dense = logits(model)
    with gated(model, gates):
        found = logits(model)
    layers = {units.layer: REMOVED[kind][units.layer] for units in units_of(model, kind)}
    REMOVE[kind](smaller, layers)
    assert_removed(found, smaller, dense)
    assert torch.equal(logits(model), dense)  # the gates are gone with the context


@pytest.mark.parametrize("layers", [[0], [1, 2]], ids=str)
@pytest.mark.parametrize("family", STACKED)
def test_a_skipped_layer_is_a_removed_one(family: str, layers: Sequence[int]) -> None:
    model, smaller = build(family, num_hidden_layers=4), build(family, num_hidden_layers=4)
    dense = logits(model)
    with skipped(model, layers):
        found = logits(model)
    remove_layers_(smaller, layers)
    assert_removed(found, smaller, dense)
