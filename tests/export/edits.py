"""A model with every kind of edit, for exports."""

import pytest
import torch

from lightning_compress import remove_heads_, remove_layers_, remove_neurons_
from lightning_compress.models import set_masks_
from lightning_compress.substitution.edit import substitute_layers_


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def edit_everywhere(model):
    """Remove heads, neurons and a layer, replace another by a compact block, and mask weights."""
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {0: range(40)})
    remove_layers_(model, [3])
    substitute_layers_(model, groups=[[1]], width=16, depth=1)
    torch.nn.init.normal_(
        model.get_parameter(last_up_projection(model)), std=0.1
    )  # initially zeros
    set_masks_(model, {last_up_projection(model): torch.rand(32, 16) > 0.5})


def last_up_projection(model):
    return next(name for name, _ in model.named_parameters() if name.endswith(".up.weight"))
