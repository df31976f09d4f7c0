import numpy as np
import pytest
import torch

from lightning_compress.models.families import FAMILIES as ENTRIES
from lightning_compress.models.structure import output_dim
from lightning_compress.substitution.block_distillation import matching_error
from lightning_compress.substitution.captured import dense_outputs, passages
from lightning_compress.substitution.initialization import start_

from ..families import SUBSTITUTABLE


def seen(it, group=0):
    targets = dense_outputs(it.choices, it.calibration)
    return passages(it.choices, group, it.calibration, targets[group])


def tokens(found):
    return np.concatenate([one.hidden[one.mask].numpy() for one in found])


def principal(found, width):
    """By numpy's singular values: mean, directions [R, H], and the share of the variance."""
    inputs = tokens(found)
    mean = inputs.mean(0)
    _, values, directions = np.linalg.svd(inputs - mean, full_matrices=False)
    return mean, directions[:width], float((values[:width] ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize("start", ["components", "least_squares", "sliced"])
@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_what_goes_down_are_the_principal_components(scene, family, start):
    it = scene(family)
    found = seen(it)
    kept = start_(it.choices[0], found, start, family)
    mean, directions, share = principal(found, 8)
    assert kept == pytest.approx(share, rel=1e-9)
    block = it.choices[0].new
    with torch.no_grad():
        small = block.down(torch.from_numpy(tokens(found))).numpy()
    components = (tokens(found) - mean) @ directions.T
    np.testing.assert_allclose(small.mean(0), 0, atol=1e-9)
    assert small.var(0).mean() == pytest.approx(1)
    # Each up to its sign, and all of them on one scale.
    scale = np.sqrt(components.var(0).mean())
    np.testing.assert_allclose(np.abs(small), np.abs(components / scale), atol=1e-8)


def test_with_all_components_nothing_is_lost(scene):
    it = scene(options={"width": 32})
    assert start_(it.choices[0], seen(it), "components", "bert") == pytest.approx(1)


def features(block, passage):
    """What the up-projection reads, by hand."""
    with torch.no_grad():
        small = block.down(passage.hidden)
        for layer in block.layers:
            small = layer(small, *passage.rest, **passage.keywords)
        return block.norm(small)


@pytest.mark.parametrize("start", ["least_squares", "sliced"])
@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_what_goes_up_is_the_ridge_solution(scene, family, start):
    it = scene(family)
    found, block = seen(it, 1), it.choices[1].new
    start_(it.choices[1], found, start, family)
    inputs = np.concatenate([features(block, one)[one.mask].numpy() for one in found])
    added = np.concatenate([(one.target - one.hidden)[one.mask].numpy() for one in found])
    centred = inputs - inputs.mean(0)
    ridge = 0.01 * (centred**2).sum(0).mean()
    # As a plain least-squares problem with rows that draw the weights towards zero.
    rows = np.concatenate([centred, np.sqrt(ridge) * np.eye(8)])
    wanted = np.concatenate([added - added.mean(0), np.zeros((8, 32))])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(block.up.weight.detach().numpy(), weight, atol=1e-8)
    bias = added.mean(0) - weight @ inputs.mean(0)
    np.testing.assert_allclose(block.up.bias.detach().numpy(), bias, atol=1e-8)


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_no_start_is_worse_than_to_skip_the_layers(scene, family):
    errors = {}
    for start in ("zero", "components", "least_squares", "sliced"):
        it = scene(family)
        found = seen(it)
        kept = start_(it.choices[0], found, start, family)
        assert (kept is None) == (start == "zero")
        errors[start] = matching_error(it.choices[0].new, found)
    assert errors["components"] == pytest.approx(errors["zero"])
    assert errors["least_squares"] < errors["zero"]
    assert errors["sliced"] < errors["zero"]


def test_zero_and_random_leave_the_rest_as_it_was(scene):
    it, other = scene(), scene()
    found = seen(it)
    assert start_(it.choices[0], found, "zero", "bert") is None
    state, before = it.choices[0].new.state_dict(), other.choices[0].new.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert not state["up.weight"].any()
    assert start_(it.choices[0], found, "random", "bert") is None
    assert 0.01 < float(state["up.weight"].std()) < 0.03
    rest = [name for name in state if name != "up.weight"]
    assert all(torch.equal(state[name], before[name]) for name in rest)


@pytest.mark.parametrize("start", ["random", "zero", "components", "least_squares", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_old_layers_and_the_type_of_numbers_stay(scene, start, dtype):
    it = scene(dtype=dtype)
    before = {name: value.clone() for name, value in it.model.state_dict().items()}
    start_(it.choices[0], seen(it), start, "bert")
    after = it.model.state_dict()
    inside = "bert.encoder.layer.1.new."
    for name, value in before.items():
        assert after[name].dtype == dtype
        assert name.startswith(inside) or torch.equal(after[name], value)
    assert all(bool(value.isfinite().all()) for value in after.values())


def test_fewer_tokens_than_components_are_no_trouble(scene):
    it = scene(options={"width": 32})
    for batch in it.calibration.batches:
        for name in batch:
            batch[name] = batch[name][:1, :3]
    found = seen(it)
    assert start_(it.choices[0], found, "sliced", "bert") == pytest.approx(1)
    assert all(bool(weight.isfinite().all()) for weight in it.choices[0].new.parameters())


# --- layers made of the old ones


def linear(layer, name):
    """[outputs, inputs] and bias, of either kind of linear layer."""
    module = layer.get_submodule(name)
    weight = module.weight if output_dim(module) == 0 else module.weight.T
    return weight.detach(), module.bias.detach()


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_in_a_whole_basis_the_narrow_layer_computes_what_the_old_one_does(scene, family):
    it = scene(
        family, options={"width": 32, "heads": 4, "depth": 1},
        **{ENTRIES[family].inner: 128},
    )  # fmt: skip
    found = seen(it)
    start_(it.choices[0], found, "sliced", family)
    block, old, entry = it.choices[0].new, it.choices[0].old[0], ENTRIES[family]
    basis = torch.linalg.inv(block.down.weight.detach())
    wide = torch.randn(50, 32, dtype=torch.float64)
    # The vector in the basis that a wide one is, or, where a norm takes the mean away, stands for.
    mean = torch.zeros(32) if family == "gpt2" else -(basis @ block.down.bias.detach())
    small = (wide - mean) @ block.down.weight.detach().T
    for kind in (entry.heads, entry.neurons):
        for name in kind.inputs:
            weight, bias = linear(block.layers[0], name)
            wanted, more = linear(old, name)
            assert torch.allclose(small @ weight.T + bias, wide @ wanted.T + more, atol=1e-8)
        weight, bias = linear(block.layers[0], kind.output)
        wanted, more = linear(old, kind.output)
        inside = torch.randn(50, wanted.shape[1], dtype=torch.float64)
        said = (inside @ weight.T + bias) @ basis.T
        assert torch.allclose(said, inside @ wanted.T + more, atol=1e-8)


def scores(query, key, heads):
    query, key = (one.reshape(len(one), heads, -1).transpose(0, 1) for one in (query, key))
    return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("heads", [1, 2])
def test_heads_that_are_larger_than_the_old_ones_look_where_those_do(scene, family, heads):
    it = scene(family, options={"width": 32, "heads": heads, "depth": 1})
    start_(it.choices[0], seen(it), "sliced", family)
    block, old, entry = it.choices[0].new, it.choices[0].old[0], ENTRIES[family].heads
    basis = torch.linalg.inv(block.down.weight.detach())
    wide = torch.randn(20, 32, dtype=torch.float64)
    mean = torch.zeros(32) if family == "gpt2" else -(basis @ block.down.bias.detach())
    small = (wide - mean) @ block.down.weight.detach().T

    def parts(layer, inputs):
        said = [
            inputs @ weight.T + bias for weight, bias in (linear(layer, n) for n in entry.inputs)
        ]
        return torch.cat(said, dim=1).chunk(3, dim=1)

    found = parts(block.layers[0], small)
    wanted = parts(old, wide)
    looks, known = scores(found[0], found[1], heads), scores(wanted[0], wanted[1], 4)
    taken = [
        next(head for head in range(4) if torch.allclose(look, known[head], atol=1e-8))
        for look in looks
    ]
    assert len(set(taken)) == heads
    # Of as many dimensions the values are those of the same heads, and the others say nothing.
    values = found[2].reshape(20, heads, -1)[..., :8]
    output = linear(block.layers[0], entry.output)[0].reshape(32, heads, -1)
    for place, head in enumerate(taken):
        assert torch.allclose(values[:, place], wanted[2].reshape(20, 4, 8)[:, head], atol=1e-8)
    assert not output[..., 8:].any()
    assert output[..., :8].all()


def test_the_heads_and_neurons_that_are_taken_are_the_largest(scene):
    it = scene(options={"width": 8, "heads": 1, "depth": 1})
    old = it.choices[0].old[0]
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(old.attention.self, name).weight[16:24] *= 10
        old.intermediate.dense.weight[:32] *= 10
    start_(it.choices[0], seen(it), "sliced", "bert")
    layer, down = it.choices[0].new.layers[0], it.choices[0].new.down
    basis = torch.linalg.pinv(down.weight.detach())
    for name in ("query", "key", "value"):
        weight = getattr(layer.attention.self, name).weight.detach()
        assert torch.allclose(weight, getattr(old.attention.self, name).weight[16:24] @ basis)
    assert torch.allclose(
        layer.intermediate.dense.weight, old.intermediate.dense.weight[:32] @ basis
    )


def test_narrow_layers_are_made_of_old_ones_spread_over_the_group(scene):
    for groups, depth, sources in (
        (((1, 2, 3),), 1, [0]), (((1, 2, 3),), 3, [0, 1, 2]), (((1, 2),), 4, [0, 0, 1, 1]),
    ):  # fmt: skip
        it = scene(groups=groups, options={"width": 32, "heads": 4, "depth": depth})
        start_(it.choices[0], seen(it), "sliced", "bert")
        block = it.choices[0].new
        basis = torch.linalg.inv(block.down.weight.detach())
        for layer, source in zip(block.layers, sources, strict=True):
            wanted = it.choices[0].old[source].attention.self.query.weight @ basis
            assert torch.allclose(layer.attention.self.query.weight, wanted, atol=1e-10)
