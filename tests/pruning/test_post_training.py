"""Rearrangement and matching, each against a slow reference."""

import copy
import itertools

import pytest
import torch

from lightning_compress.models import manifest_of, remove_heads_, remove_neurons_, units_of
from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.models.structure import linear_at, outputs_first
from lightning_compress.pruning.post_training import prune_post_training_
from lightning_compress.pruning.reconstruction import reconstruct_projections_
from lightning_compress.pruning.selection import LayerMinimum, rearrange

from ..families import ALL, STACKED


def loss_without(gradients, gone):
    """The slow way: square the sum of the gradients of the units that go, example by example."""
    return sum(float(sum(row[unit] for unit in gone)) ** 2 for row in gradients)


def test_units_that_make_up_for_each_other_go_together():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    gradients[:, 4] = -gradients[:, 1] * 1.01
    assert rearrange(gradients, [0, 2]) == [1, 4]


@pytest.mark.parametrize("seed", range(5))
def test_no_single_swap_helps_and_few_choices_are_better(seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(20, 8, generator=generator) + torch.randn(8, generator=generator)
    start = gradients.square().mean(0).argsort()[:4].tolist()
    found = rearrange(gradients, start)
    least = loss_without(gradients, found)
    assert len(found) == 4
    assert least <= loss_without(gradients, start) * (1 + 1e-6)
    for out, back in itertools.product(found, set(range(8)) - set(found)):
        swapped = [unit for unit in found if unit != out] + [back]
        assert loss_without(gradients, swapped) >= least * (1 - 1e-6)


def test_nothing_and_everything_stay_as_they_are():
    gradients = torch.randn(5, 3)
    assert rearrange(gradients, []) == []
    assert rearrange(gradients, [0, 1, 2]) == [0, 1, 2]


def seen(model, padded=True):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        ids = torch.randint(2, 100, (6, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})

    def logits(batch):
        return model(**batch).logits

    return Calibration(batches, lambda batch: logits(batch).sum(), logits)


def collected(model, calibration, name):
    found = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: found.append((inputs[0], output))
    )
    rows = []
    with torch.no_grad():
        for batch in calibration.batches:
            found.clear()
            calibration.logits(batch)
            mask = token_mask(batch)
            rows += [
                [part.reshape(*mask.shape, -1)[mask].double() for part in call] for call in found
            ]
    hook.remove()
    return [torch.cat(part) for part in zip(*rows, strict=True)]


@pytest.mark.parametrize("family", ALL)
def test_the_first_projection_is_the_least_squares_fit(tiny_model, family):
    # From narrower embeddings the inputs would have too small a rank for one single fit.
    dense = tiny_model(family, embedding_size=32).double()
    model = copy.deepcopy(dense)
    remove_heads_(model, {0: [1]})
    name = units_of(model, "heads")[0].output
    inputs, _ = collected(model, seen(model), name)
    _, wanted = collected(dense, seen(dense), name)
    reconstruct_projections_(model, dense, seen(model), lambda b: dense(**b).logits, ridge=1e-12)
    module = linear_at(model, name)
    if module.bias is not None:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    best = torch.linalg.lstsq(inputs, wanted).solution
    weight = outputs_first(module)
    assert torch.allclose(weight.T, best[: weight.shape[1]], atol=1e-5)


@pytest.mark.parametrize("family", STACKED)
def test_matching_brings_the_outputs_closer_to_the_dense_ones(tiny_model, family):
    dense = tiny_model(family)
    for weight in dense.parameters():  # livelier than fresh weights, where little depends on any
        weight.data *= 3 if weight.dim() == 2 else 1
    model = copy.deepcopy(dense)
    remove_heads_(model, {0: [0], 1: [2]})
    remove_neurons_(model, {0: range(0, 64, 2), 1: range(0, 64, 3)})
    calibration = seen(model)
    whole = torch.cat([dense(**batch).logits for batch in calibration.batches]).detach()

    def distance():
        with torch.no_grad():
            said = torch.cat([calibration.logits(batch) for batch in calibration.batches])
        return float((said - whole).square().mean())

    before, steps = distance(), []
    reconstruct_projections_(
        model, dense, calibration, lambda b: dense(**b).logits, on_progress=lambda: steps.append(1)
    )
    assert distance() < 0.7 * before
    assert len(steps) == 4


def test_a_model_from_which_nothing_left_is_not_changed(tiny_bert):
    model = copy.deepcopy(tiny_bert)
    reconstruct_projections_(model, tiny_bert, seen(model), lambda b: tiny_bert(**b).logits)
    for one, other in zip(model.parameters(), tiny_bert.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_feed_forward_layers_that_read_in_pieces_are_pruned_alike(tiny_model, family):
    """All of it: gates, statistics, removal, matching."""
    models = [tiny_model(family, chunk_size_feed_forward=size).double() for size in (0, 3)]
    for model in models:
        units = [*units_of(model, "heads"), *units_of(model, "neurons")]
        prune_post_training_(
            model, seen(model), lambda model, batch: model(**batch).logits,
            {one.output: 8.0 if one.kind == "heads" else 1.0 for one in units},
            0.5 * len(units_of(model, "heads")) * (4 * 8 + 64),
            {"heads": LayerMinimum(), "neurons": LayerMinimum(8, 8)},
        )  # fmt: skip
    whole, pieces = models
    assert manifest_of(whole) == manifest_of(pieces) != []
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
