import copy

import pytest
import torch

from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import output_dim
from lightning_compress.pruning.reconstruction import (
    absorb_means_,
    input_statistics,
    least_squares_refit_,
)

from ..families import ALL

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
GONE = {"heads": [1, 3], "neurons": [0, 5, 6, 7, 31, 63]}
BOTH = pytest.mark.parametrize("kind", ["heads", "neurons"])
EACH = pytest.mark.parametrize("family", ALL)


@pytest.fixture
def lively_model(tiny_model):
    """Weights as large as after training, biases that are not zero; in float64."""

    def build(family):
        model = tiny_model(family)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        return model.double()

    return build


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 100, (16, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(4, 10, (16, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def looking(model):
    return Calibration(
        [batch(1), batch(2), batch(3)],
        lambda batch: model(**batch).loss,
        lambda batch: model(**batch).logits,
    )


def passed(model, name):
    """What goes into a projection and what comes out, for the tokens that are no padding."""
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def hook(module, said, output):
        mask = data["attention_mask"].bool()
        inputs.append(said[0][mask])
        outputs.append(output[mask])

    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        for data in looking(model).batches:
            model(**data)
    handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


def compensated(model, kind, layer, how):
    """A smaller model, and the columns of its projection in the larger one."""
    smaller = copy.deepcopy(model)
    units = units_of(smaller, kind)[layer]
    seen = input_statistics(smaller, [units], looking(smaller), pairs=True)[units.output]
    if how is not None:
        how(smaller, units, GONE[kind], seen)
    REMOVE[kind](smaller, {layer: GONE[kind]})
    kept = [unit for unit in range(units.count) if unit not in GONE[kind]]
    width = len(seen.mean) // units.count
    columns = [unit * width + inner for unit in kept for inner in range(width)]
    return smaller, units.output, columns


def refit_without_ridge_(model, units, gone, seen):
    least_squares_refit_(model, units, gone, seen, ridge=0)


@BOTH
@EACH
def test_folded_means_keep_the_mean_output(lively_model, family, kind):
    model = lively_model(family)
    for layer in range(len(units_of(model, kind))):
        bare, name, columns = compensated(model, kind, layer, None)
        folded, _, _ = compensated(model, kind, layer, absorb_means_)
        inputs, outputs = passed(model, name)
        with torch.no_grad():
            before = bare.get_submodule(name)(inputs[:, columns]).mean(0)
            after = folded.get_submodule(name)(inputs[:, columns]).mean(0)
        if family == "llama":  # there is no bias that could take the means
            assert torch.equal(before, after)
            assert folded.get_submodule(name).bias is None
        else:
            assert torch.allclose(after, outputs.mean(0), rtol=0, atol=1e-10)
            assert not torch.allclose(before, outputs.mean(0), rtol=0, atol=1e-3)
        if family not in ("llama", "albert"):  # ALBERT's second pass starts from another place
            assert torch.allclose(passed(folded, name)[1].mean(0), outputs.mean(0), atol=1e-10)


@BOTH
@EACH
def test_refitted_weights_are_the_least_squares_solution(lively_model, family, kind):
    model = lively_model(family)
    for layer in range(len(units_of(model, kind))):
        smaller, name, columns = compensated(model, kind, layer, refit_without_ridge_)
        inputs, outputs = passed(model, name)
        design = inputs[:, columns]
        if family != "llama":
            design = torch.cat([design, torch.ones(len(design), 1).double()], dim=1)
        solution = torch.linalg.lstsq(design, outputs, driver="gelsd").solution
        module = smaller.get_submodule(name)
        weight = module.weight if output_dim(module) else module.weight.T
        assert torch.allclose(weight, solution[: len(columns)], rtol=1e-6, atol=1e-8)
        if family != "llama":
            assert torch.allclose(module.bias, solution[-1], rtol=1e-6, atol=1e-8)


@BOTH
@EACH
def test_refitting_loses_no_more_than_folding_and_that_no_more_than_nothing(
    lively_model, family, kind
):
    model = lively_model(family)
    losses = []
    for how in (refit_without_ridge_, least_squares_refit_, absorb_means_, None):
        smaller, name, columns = compensated(model, kind, 0, how)
        inputs, outputs = passed(model, name)
        with torch.no_grad():
            said = smaller.get_submodule(name)(inputs[:, columns])
        losses.append(float((said - outputs).square().sum()))
    exact, refitted, folded, bare = losses
    assert exact <= refitted * (1 + 1e-9)
    assert exact < 0.99 * folded
    assert refitted < folded
    assert folded == bare if family == "llama" else folded < bare


def copy_unit_(model, units, source, target, scale):
    """Let a unit say the same as another one, ``scale`` times as loud."""
    for name in units.inputs:
        module = model.get_submodule(name)
        rows = module.weight.data.T if output_dim(module) else module.weight.data
        biases = [] if module.bias is None else [module.bias.data]
        part = len(rows) // units.parts
        width = part // units.count
        for start in range(0, len(rows), part):
            factor = scale if name == units.inputs[-1] and start == len(rows) - part else 1
            for values in (rows, *biases):
                values[start + target * width : start + (target + 1) * width] = (
                    factor * values[start + source * width : start + (source + 1) * width]
                )


@BOTH
@EACH
def test_nothing_is_lost_with_a_unit_that_repeats_another(lively_model, family, kind):
    model = lively_model(family)
    # An activation function stands behind neurons, except for what Llama's gates let through.
    scale = 3 if kind == "heads" or family == "llama" else 1
    all_units = units_of(model, kind)
    for units in all_units:
        for unit in GONE[kind]:
            copy_unit_(model, units, 2, unit, scale)
    smaller = copy.deepcopy(model)
    seen = input_statistics(smaller, all_units, looking(smaller), pairs=True)
    for units in all_units:
        refit_without_ridge_(smaller, units, GONE[kind], seen[units.output])
    bare = copy.deepcopy(model)
    for edited in (smaller, bare):
        REMOVE[kind](edited, {units.layer: GONE[kind] for units in all_units})
    new = batch(4)  # examples that were not looked at
    with torch.no_grad():
        dense = model(**new).logits
        assert torch.allclose(smaller(**new).logits, dense, rtol=0, atol=1e-6)
        assert not torch.allclose(bare(**new).logits, dense, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compensation_keeps_the_precision_of_the_model(lively_model, dtype):
    for how in (absorb_means_, least_squares_refit_):
        reference, name, _ = compensated(lively_model("bert"), "neurons", 0, how)
        smaller, _, _ = compensated(lively_model("bert").to(dtype), "neurons", 0, how)
        for attribute in ("weight", "bias"):
            found = getattr(smaller.get_submodule(name), attribute)
            wanted = getattr(reference.get_submodule(name), attribute)
            assert found.dtype == dtype
            error = (found.double() - wanted).norm() / wanted.norm()
            assert error < (1e-4 if dtype == torch.float32 else 0.1)


@BOTH
def test_nothing_gone_changes_nothing(lively_model, kind):
    model = lively_model("bert")
    units = units_of(model, kind)[0]
    seen = input_statistics(model, [units], looking(model), pairs=True)[units.output]
    before = copy.deepcopy(model.get_submodule(units.output))
    absorb_means_(model, units, [], seen)
    refit_without_ridge_(model, units, [], seen)
    after = model.get_submodule(units.output)
    assert torch.allclose(after.weight, before.weight, atol=1e-8)
    assert torch.allclose(after.bias, before.bias, atol=1e-8)
