"""Structured pruning without training, as a whole."""

import pytest
import torch

from lightning_compress.models import manifest_of, units_of
from lightning_compress.pruning.post_training import prune_post_training_
from lightning_compress.pruning.selection import LayerMinimum

from .conftest import all_units, calibration_with_padding


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_chunked_feed_forward_layers_are_pruned_like_whole_ones(tiny_model, family):
    """All of it: gates, statistics, removal, reconstruction."""
    models = [tiny_model(family, chunk_size_feed_forward=size).double() for size in (0, 3)]
    for model in models:
        units = all_units(model)
        prune_post_training_(
            model, calibration_with_padding(model), lambda model, batch: model(**batch).logits,
            {one.output: 8.0 if one.kind == "heads" else 1.0 for one in units},
            0.5 * len(units_of(model, "heads")) * (4 * 8 + 64),
            {"heads": LayerMinimum(), "neurons": LayerMinimum(8, 8)},
        )  # fmt: skip
    whole, pieces = models
    assert manifest_of(whole) == manifest_of(pieces) != []
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
