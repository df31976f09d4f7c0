"""Quantized modules against slow, obvious loops in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from lightning_compress.models.modeling_kernels import unpack_int4
from lightning_compress.models.modeling_quantized import (
    QuantizedEmbedding,
    QuantizedLinear,
    pack_int4,
    quantize_affine,
    quantize_per_row,
    quantized_module,
    weights_of,
)
from lightning_compress.quantization import quantize_


def rounded(value):
    """To the nearest whole number, halves to even."""
    return float(np.rint(value))


def random_layer(seed=0, **options):
    """A quantized linear layer with something in it."""
    generator = torch.Generator().manual_seed(seed)
    usual: dict[str, Any] = {
        "bits": 8,
        "group_size": 0,
        "activations": "float",
        "smoothing": False,
        "bias": True,
    }
    module = QuantizedLinear(24, 10, **usual | options)
    limit = 127 if module.bits == 8 else 7
    numbers = torch.randint(-limit, limit + 1, (10, 24), generator=generator, dtype=torch.int8)
    module.weight.copy_(numbers if module.bits == 8 else pack_int4(numbers))
    module.scale.uniform_(0.001, 0.01, generator=generator)
    if module.bias is not None:
        module.bias.data.normal_(generator=generator)
    if module.smoothing_scale is not None:
        module.smoothing_scale.uniform_(0.1, 3.0, generator=generator)
    if module.activations == "static":
        module.input_scale.fill_(0.031)
        module.input_zero_point.fill_(-17)
        module.zero_point_correction.copy_(numbers.sum(1) * -17)
    return module, numbers.double()


def by_loops(module, numbers, rows):
    """What a quantized linear layer has to say of rows [M, 24]."""
    step = module.scale.double()
    group = module.group_size or 24
    found = np.zeros((len(rows), 10))
    for row, output in itertools.product(range(len(rows)), range(10)):
        inputs = rows[row].double()
        if module.smoothing_scale is not None:
            inputs = inputs * module.smoothing_scale.double()
        if module.activations == "dynamic":
            own = max(float(inputs.abs().max()) / 127, 1e-12)
            inputs = [max(-127, min(127, rounded(float(x) / own))) * own for x in inputs]
        elif module.activations == "static":
            own, zero = float(module.input_scale), int(module.input_zero_point)
            whole = [max(-128, min(127, rounded(float(x) / own) + zero)) for x in inputs]
            inputs = [(x - zero) * own for x in whole]
        for column in range(24):
            weight = float(numbers[output, column] * step[output, column // group])
            found[row, output] += float(inputs[column]) * weight
        if module.bias is not None:
            found[row, output] += float(module.bias[output])
    return torch.from_numpy(found)


KINDS = [
    {"activations": "float"},
    {"activations": "float", "group_size": 8},
    {"activations": "float", "bits": 4, "group_size": 6},
    {"activations": "dynamic"},
    {"activations": "static"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_equal_a_slow_loop(kind, smoothing, bias):
    module, numbers = random_layer(**kind, smoothing=smoothing, bias=bias)
    # Inputs that no rounding in float32 can push over the edge between two whole numbers.
    rows = torch.randn(7, 24, generator=torch.Generator().manual_seed(1))
    found = module(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), by_loops(module, numbers, rows), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(module(rows.view(7, 1, 24)).view(7, 10), found)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_a_row_do_not_depend_on_other_rows(kind):
    module, _ = random_layer(**kind)
    rows = torch.randn(40, 24)
    rows[3] *= 1000
    whole = module(rows)
    alone = torch.cat([module(row[None]) for row in rows])
    if kind["activations"] == "float":  # sums of floats, in another order
        torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-3)
    else:
        assert torch.equal(whole, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_dtype_of_the_inputs(kind):
    module, _ = random_layer(**kind)
    rows = torch.randn(7, 24)
    found = module.bfloat16()(rows.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), random_layer(**kind)[0](rows), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_per_row_has_a_scale_per_row(bits):
    limit = {8: 127, 4: 7}[bits]
    rows = torch.randn(5, 31)
    rows[2] = 0
    rows[3] *= 1e6
    numbers, step = quantize_per_row(rows, bits)
    assert numbers.dtype == torch.int8
    assert step.shape == (5, 1)
    for row in range(5):
        largest = max(abs(float(x)) for x in rows[row])
        assert float(step[row]) == pytest.approx(max(largest / limit, 1e-12))
        for column in range(31):
            error = abs(float(numbers[row, column] * step[row]) - float(rows[row, column]))
            assert error <= float(step[row]) * (0.5 + 1e-4)
    assert numbers.abs().amax(1).tolist() == [limit, limit, 0, limit, limit]


def test_quantize_affine_clips_outliers():
    numbers = quantize_affine(torch.tensor([-100.0, -1.0, 0.0, 0.26, 100.0]), *_grid(0.5, 20))
    assert numbers.tolist() == [-128, 18, 20, 21, 127]


def _grid(step, zero):
    return torch.tensor([step]), torch.tensor([zero], dtype=torch.int32)


def test_int4_values_are_packed_two_to_a_byte():
    pairs = torch.tensor(list(itertools.product(range(-7, 8), repeat=2)), dtype=torch.int8)
    packed = pack_int4(pairs)
    assert packed.shape == (225, 1)
    assert packed.element_size() == 1
    assert len(set(packed.flatten().tolist())) == 225
    assert torch.equal(unpack_int4(packed), pairs)


def test_embeddings_are_rows_times_their_scales():
    module = QuantizedEmbedding(9, 6, padding_idx=1)
    module.weight.copy_(torch.randint(-127, 128, (9, 6)))
    module.scale.uniform_(0.1, 1.0)
    ids = torch.tensor([[3, 8], [0, 3]])
    found = module(ids)
    for place in itertools.product(range(2), repeat=2):
        token = int(ids[place])
        wanted = [float(x) * float(module.scale[token]) for x in module.weight[token]]
        assert found[place].tolist() == pytest.approx(wanted)
    assert torch.equal(module.dequantized()[ids], found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_builds_a_module_of_the_same_shape(kind):
    module, _ = random_layer(**kind, smoothing=True)
    other = quantized_module(module.spec())
    other.load_state_dict(module.state_dict())
    rows = torch.randn(3, 24)
    assert torch.equal(other(rows), module(rows))
    assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_outputs_are_equal(kind):
    module, _ = random_layer(**kind)
    rows = torch.randn(7, 24)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(rows), module(rows))


def test_the_first_parameter_of_a_quantized_model_is_floating_point(tiny_bert):
    """sentence-transformers casts what stands behind a model to the dtype of this parameter."""
    count = sum(parameter.numel() for parameter in tiny_bert.parameters())
    quantize_(tiny_bert, "int8-weight")
    assert next(tiny_bert.parameters()).dtype == torch.float32
    assert isinstance(tiny_bert.get_input_embeddings(), QuantizedEmbedding)
    assert sum(parameter.numel() for parameter in weights_of(tiny_bert)) == count
