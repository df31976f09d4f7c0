"""Torch-Pruning removes the same heads and neurons, and the same weights are left.

Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, https://arxiv.org/abs/2301.12900.
Torch-Pruning follows the graph of autograd to find what is coupled to a row of a weight, so it
checks the names in ``FAMILIES`` by other means. It does not know GPT-2's ``Conv1D`` nor the bias
that MPNet's layers share, and version 1.6.1 does not finish on the key-value heads of Llama and its
like, whose outputs are repeated for the query heads.
"""

import copy

import pytest
import torch
import torch_pruning

from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.structure import linear_at, outputs_of, positions_of

from ..families import ALL, randomize_, tiny_config, tiny_model

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
REMOVED = {"heads": {0: [1, 3], 1: [0]}, "neurons": {0: [0, 5, 63], 1: list(range(1, 64, 2))}}
IDS = torch.arange(2, 20).reshape(2, 9)


def remove_with_torch_pruning_(model, kind, removed):
    # Norms of Llama are no modules that Torch-Pruning knows: it is given their dimension.
    norms = [
        (module.weight, 0)
        for module in model.modules()
        if type(module).__name__.endswith("RMSNorm")
    ]
    for layer, chosen in removed.items():
        units = units_of(model, kind)[layer]
        graph = torch_pruning.DependencyGraph().build_dependency(
            model,
            example_inputs={"input_ids": IDS},
            output_transform=lambda output: output.logits,
            unwrapped_parameters=norms,
        )
        first = linear_at(model, units.inputs[0])
        rows = positions_of(chosen, outputs_of(first), units.parts, units.count)
        graph.get_pruning_group(
            first, torch_pruning.prune_linear_out_channels, idxs=rows.tolist()
        ).prune()


# Of a family that is added to FAMILIES, both kinds are tested.
UNSUPPORTED = {
    ("gpt2", "heads"), ("gpt2", "neurons"), ("mpnet", "heads"),
    *((one, "heads") for one in ALL if hasattr(tiny_config(one), "num_key_value_heads")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in ALL for kind in REMOVE if (family, kind) not in UNSUPPORTED],
)
def test_the_same_weights_are_left(family, kind):
    model = randomize_(tiny_model(family))
    model.set_attn_implementation("eager")  # the graph of a fused kernel hides what is coupled
    removed = {0: REMOVED[kind][0]} if FAMILIES[family].shared else REMOVED[kind]
    ours = copy.deepcopy(model)
    REMOVE[kind](ours, removed)
    remove_with_torch_pruning_(model, kind, removed)
    expected = dict(model.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    assert sum(weight.numel() for weight in found.values()) < sum(
        weight.numel() for weight in tiny_model(family).parameters()
    )
