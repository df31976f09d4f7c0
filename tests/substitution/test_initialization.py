import numpy as np
import pytest
import torch

from lightning_compress.models.families import FAMILIES
from lightning_compress.models.structure import output_dim
from lightning_compress.substitution.block_distillation import block_error
from lightning_compress.substitution.captured import capture_block_io, capture_targets
from lightning_compress.substitution.initialization import initialize_

from ..families import SUBSTITUTABLE


def captured_io(staged, group=0):
    targets = capture_targets(staged.switches, staged.calibration)
    return capture_block_io(staged.switches, group, staged.calibration, targets[group])


def tokens(found):
    return np.concatenate([one.hidden[one.mask].numpy() for one in found])


def principal(found, width):
    """By numpy's singular values: mean, directions [R, H], and the share of the variance."""
    inputs = tokens(found)
    mean = inputs.mean(0)
    _, values, directions = np.linalg.svd(inputs - mean, full_matrices=False)
    return mean, directions[:width], float((values[:width] ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize("initialization", ["components", "least_squares", "sliced"])
@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_down_projection_keeps_the_principal_components(
    staged_substitution, family, initialization
):
    staged = staged_substitution(family)
    found = captured_io(staged)
    kept = initialize_(staged.switches[0], found, initialization, family)
    mean, directions, share = principal(found, 8)
    assert kept == pytest.approx(share, rel=1e-9)
    block = staged.switches[0].successor
    with torch.no_grad():
        small = block.down(torch.from_numpy(tokens(found))).numpy()
    components = (tokens(found) - mean) @ directions.T
    np.testing.assert_allclose(small.mean(0), 0, atol=1e-9)
    assert small.var(0).mean() == pytest.approx(1)
    # Each up to its sign, and all of them on one scale.
    scale = np.sqrt(components.var(0).mean())
    np.testing.assert_allclose(np.abs(small), np.abs(components / scale), atol=1e-8)


def test_all_components_explain_all_variance(staged_substitution):
    staged = staged_substitution(options={"width": 32})
    assert initialize_(
        staged.switches[0], captured_io(staged), "components", "bert"
    ) == pytest.approx(1)


def features(block, io):
    """What the up-projection reads, by hand."""
    with torch.no_grad():
        small = block.down(io.hidden)
        for layer in block.layers:
            small = layer(small, *io.args, **io.kwargs)
        return block.norm(small)


@pytest.mark.parametrize("initialization", ["least_squares", "sliced"])
@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_up_projection_is_the_ridge_solution(staged_substitution, family, initialization):
    staged = staged_substitution(family)
    found, block = captured_io(staged, 1), staged.switches[1].successor
    initialize_(staged.switches[1], found, initialization, family)
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
def test_every_initialization_is_at_least_as_good_as_skipping_the_layers(
    staged_substitution, family
):
    errors = {}
    for initialization in ("zero", "components", "least_squares", "sliced"):
        staged = staged_substitution(family)
        found = captured_io(staged)
        kept = initialize_(staged.switches[0], found, initialization, family)
        assert (kept is None) == (initialization == "zero")
        errors[initialization] = block_error(staged.switches[0].successor, found)
    assert errors["components"] == pytest.approx(errors["zero"])
    assert errors["least_squares"] < errors["zero"]
    assert errors["sliced"] < errors["zero"]


def test_zero_and_random_change_only_the_up_projection(staged_substitution):
    staged, other = staged_substitution(), staged_substitution()
    found = captured_io(staged)
    assert initialize_(staged.switches[0], found, "zero", "bert") is None
    state, before = (
        staged.switches[0].successor.state_dict(),
        other.switches[0].successor.state_dict(),
    )
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert not state["up.weight"].any()
    assert initialize_(staged.switches[0], found, "random", "bert") is None
    assert 0.01 < float(state["up.weight"].std()) < 0.03
    rest = [name for name in state if name != "up.weight"]
    assert all(torch.equal(state[name], before[name]) for name in rest)


@pytest.mark.parametrize(
    "initialization", ["random", "zero", "components", "least_squares", "sliced"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predecessors_and_dtypes_are_unchanged(staged_substitution, initialization, dtype):
    staged = staged_substitution(dtype=dtype)
    before = {name: value.clone() for name, value in staged.model.state_dict().items()}
    initialize_(staged.switches[0], captured_io(staged), initialization, "bert")
    after = staged.model.state_dict()
    inside = "bert.encoder.layer.1.successor."
    for name, value in before.items():
        assert after[name].dtype == dtype
        assert name.startswith(inside) or torch.equal(after[name], value)
    assert all(bool(value.isfinite().all()) for value in after.values())


def test_fewer_tokens_than_components(staged_substitution):
    staged = staged_substitution(options={"width": 32})
    for batch in staged.calibration.batches:
        for name in batch:
            batch[name] = batch[name][:1, :3]
    found = captured_io(staged)
    assert initialize_(staged.switches[0], found, "sliced", "bert") == pytest.approx(1)
    assert all(
        bool(weight.isfinite().all()) for weight in staged.switches[0].successor.parameters()
    )


# --- sliced layers


def linear(layer, name):
    """[outputs, inputs] and bias, of either kind of linear layer."""
    module = layer.get_submodule(name)
    weight = module.weight if output_dim(module) == 0 else module.weight.T
    return weight.detach(), module.bias.detach()


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_in_a_full_basis_the_narrow_layer_equals_the_wide_one(staged_substitution, family):
    staged = staged_substitution(
        family, options={"width": 32, "heads": 4, "depth": 1},
        **{FAMILIES[family].inner: 128},
    )  # fmt: skip
    found = captured_io(staged)
    initialize_(staged.switches[0], found, "sliced", family)
    block, old, entry = (
        staged.switches[0].successor,
        staged.switches[0].predecessor[0],
        FAMILIES[family],
    )
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
        outputs = (inside @ weight.T + bias) @ basis.T
        assert torch.allclose(outputs, inside @ wanted.T + more, atol=1e-8)


def scores(query, key, heads):
    query, key = (one.reshape(len(one), heads, -1).transpose(0, 1) for one in (query, key))
    return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("heads", [1, 2])
def test_heads_larger_than_the_wide_ones_keep_their_attention_scores(
    staged_substitution, family, heads
):
    staged = staged_substitution(family, options={"width": 32, "heads": heads, "depth": 1})
    initialize_(staged.switches[0], captured_io(staged), "sliced", family)
    block, old, entry = (
        staged.switches[0].successor,
        staged.switches[0].predecessor[0],
        FAMILIES[family].heads,
    )
    basis = torch.linalg.inv(block.down.weight.detach())
    wide = torch.randn(20, 32, dtype=torch.float64)
    mean = torch.zeros(32) if family == "gpt2" else -(basis @ block.down.bias.detach())
    small = (wide - mean) @ block.down.weight.detach().T

    def parts(layer, inputs):
        outputs = [
            inputs @ weight.T + bias for weight, bias in (linear(layer, n) for n in entry.inputs)
        ]
        return torch.cat(outputs, dim=1).chunk(3, dim=1)

    found = parts(block.layers[0], small)
    wanted = parts(old, wide)
    own, known = scores(found[0], found[1], heads), scores(wanted[0], wanted[1], 4)
    taken = [
        next(head for head in range(4) if torch.allclose(one, known[head], atol=1e-8))
        for one in own
    ]
    assert len(set(taken)) == heads
    # The values are those of the same heads; output weights of further dimensions are zero.
    values = found[2].reshape(20, heads, -1)[..., :8]
    output = linear(block.layers[0], entry.output)[0].reshape(32, heads, -1)
    for place, head in enumerate(taken):
        assert torch.allclose(values[:, place], wanted[2].reshape(20, 4, 8)[:, head], atol=1e-8)
    assert not output[..., 8:].any()
    assert output[..., :8].all()


def test_the_largest_heads_and_neurons_are_selected(staged_substitution):
    staged = staged_substitution(options={"width": 8, "heads": 1, "depth": 1})
    old = staged.switches[0].predecessor[0]
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(old.attention.self, name).weight[16:24] *= 10
        old.intermediate.dense.weight[:32] *= 10
    initialize_(staged.switches[0], captured_io(staged), "sliced", "bert")
    layer, down = staged.switches[0].successor.layers[0], staged.switches[0].successor.down
    basis = torch.linalg.pinv(down.weight.detach())
    for name in ("query", "key", "value"):
        weight = getattr(layer.attention.self, name).weight.detach()
        assert torch.allclose(weight, getattr(old.attention.self, name).weight[16:24] @ basis)
    assert torch.allclose(
        layer.intermediate.dense.weight, old.intermediate.dense.weight[:32] @ basis
    )


def test_narrow_layers_are_slices_of_layers_spread_over_the_group(staged_substitution):
    for groups, depth, sources in (
        (((1, 2, 3),), 1, [0]), (((1, 2, 3),), 3, [0, 1, 2]), (((1, 2),), 4, [0, 0, 1, 1]),
    ):  # fmt: skip
        staged = staged_substitution(
            groups=groups, options={"width": 32, "heads": 4, "depth": depth}
        )
        initialize_(staged.switches[0], captured_io(staged), "sliced", "bert")
        block = staged.switches[0].successor
        basis = torch.linalg.inv(block.down.weight.detach())
        for layer, source in zip(block.layers, sources, strict=True):
            wanted = staged.switches[0].predecessor[source].attention.self.query.weight @ basis
            assert torch.allclose(layer.attention.self.query.weight, wanted, atol=1e-10)
