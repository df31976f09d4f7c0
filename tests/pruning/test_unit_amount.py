import pytest
import torch
from torch import nn

from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.pruning.selection import total_cost, unit_macs
from lightning_compress.substitution.edit import substitute_layers_

TOKENS = 8
BATCH = {"input_ids": torch.randint(2, 100, (2, TOKENS))}
REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_what_units_cost_is_what_torch_counts_less_without_them(tiny_model, family):
    """Where narrow layers stand between wide ones, too."""
    model = tiny_model(family)
    substitute_layers_(model, [[1]], width=16)
    units = [*units_of(model, "heads"), *units_of(model, "neurons")]
    costs = unit_macs(model, units, TOKENS)
    for one in units:
        before = count_macs(model, BATCH)
        REMOVE[one.kind](model, {one.layer: [0]})
        assert before - count_macs(model, BATCH) == costs[one.output]


def test_together_they_are_the_multiplications_of_the_blocks(tiny_bert):
    units = [*units_of(tiny_bert, "heads"), *units_of(tiny_bert, "neurons")]
    found = total_cost(units, unit_macs(tiny_bert, units, TOKENS))
    whole = count_macs(tiny_bert, BATCH)
    tiny_bert.bert.encoder.layer = nn.ModuleList()
    assert found == whole - count_macs(tiny_bert, BATCH) > 0
