"""All kernels against int64 sums, in eager mode, compiled and exported."""

import gc
import weakref

import pytest
import torch

from lightning_compress.models import modeling_kernels as kernels
from lightning_compress.models.modeling_quantized import QuantizedLinear, quantize_per_row

HAS_DOT_PRODUCTS = kernels.fastest_cpu_kernel() == "int_mm"
KERNELS = ["fbgemm", "float32", *(["int_mm"] if HAS_DOT_PRODUCTS else [])]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """Each kernel of this CPU in turn."""
    monkeypatch.setattr(kernels, "CPU_KERNEL", request.param)
    return request.param


def operands(rows, columns, outputs, largest, zero=None, seed=0):
    """Centred integers and a weight; the first row of each has the largest sums."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-127, 127) if zero is None else (-128, 127)
    integers = torch.randint(low, high + 1, (rows, columns), generator=generator)
    weight = torch.randint(
        -largest, largest + 1, (outputs, columns), dtype=torch.int8, generator=generator
    )
    integers[0], integers[1], weight[0] = high, low, largest
    if zero is None:
        return integers.float(), weight, None, None
    zero_point = torch.tensor([zero], dtype=torch.int32)
    correction = weight.sum(1, dtype=torch.int32) * zero_point
    return (integers - zero).float(), weight, zero_point, correction


def by_integers(centred, weight, *_):
    """Sums in int64."""
    return centred.long() @ weight.long().t()


@pytest.mark.parametrize("columns", [8, 31, 768, 3001])
@pytest.mark.parametrize("largest", [63, 127])
@pytest.mark.parametrize("zero", [None, 0, -17, -128, 127])
def test_sums_are_exact_at_the_limits(kernel, columns, largest, zero):
    given = operands(20, columns, 17, largest, zero)
    expected = by_integers(*given)
    for _ in range(3):  # the weight is packed at the second use
        product = kernels.int8_product(*given)
        assert torch.equal(product.float(), expected.float())
        if product.dtype == torch.int32:
            assert torch.equal(product.long(), expected)


@pytest.mark.parametrize("zero", [None, 5])
def test_no_rows_give_no_rows(kernel, zero):
    centred, *rest = operands(20, 24, 17, 63, zero)
    for _ in range(3):
        assert kernels.int8_product(centred[:0], *rest).shape == (0, 17)


def test_a_weight_is_packed_at_its_second_use_and_again_when_it_changes(kernel):
    centred, weight, *rest = operands(20, 64, 17, 63)
    assert kernels.prepared_bytes(weight) == 0
    kernels.int8_product(centred, weight, *rest)
    assert kernels.prepared_bytes(weight) == 0
    kernels.int8_product(centred, weight, *rest)
    bytes_of_kernel = {"int_mm": 0, "fbgemm": weight.numel(), "float32": 4 * weight.numel()}
    assert kernels.prepared_bytes(weight) == bytes_of_kernel[kernel]
    weight.neg_()
    for _ in range(3):
        found = kernels.int8_product(centred, weight, *rest)
        assert torch.equal(found.long(), by_integers(centred, weight))


def test_packed_weights_are_released_with_their_weight(monkeypatch):
    monkeypatch.setattr(kernels, "CPU_KERNEL", "float32")
    centred, weight, *rest = operands(20, 64, 17, 63)
    for _ in range(2):
        kernels.int8_product(centred, weight, *rest)
    kept = weakref.ref(kernels._prepared[weight].made.weight)
    assert kept() is not None
    del weight
    gc.collect()
    assert kept() is None


def test_weights_in_full_range_are_never_packed_by_fbgemm(monkeypatch):
    monkeypatch.setattr(kernels, "CPU_KERNEL", "fbgemm")
    for largest, packed in ((64, True), (65, False)):
        centred, weight, *rest = operands(20, 64, 17, largest)
        for _ in range(2):
            kernels.int8_product(centred, weight, *rest)
        assert (kernels.prepared_bytes(weight) == weight.numel()) is packed


def test_weights_made_in_inference_mode_are_followed(kernel):
    with torch.inference_mode():
        centred, weight, *rest = operands(20, 64, 17, 63)
        for _ in range(3):
            found = kernels.int8_product(centred, weight, *rest)
            assert torch.equal(found.long(), by_integers(centred, weight))
            weight.neg_()


def test_bf16_autocast_does_not_change_the_sums(kernel):
    given = operands(20, 768, 17, 63)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            product = kernels.int8_product(*given)
        assert torch.equal(product.long(), by_integers(*given))


def test_another_quantized_engine_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(kernels, "CPU_KERNEL", "fbgemm")
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "qnnpack"
        given = operands(20, 64, 17, 63)
        for _ in range(3):
            assert torch.equal(kernels.int8_product(*given).long(), by_integers(*given))
        assert torch.backends.quantized.engine == "qnnpack"
    finally:
        torch.backends.quantized.engine = before


def layer_of(activations, bits=7, columns=64):
    generator = torch.Generator().manual_seed(0)
    group_size = 16 if bits == 4 else 0
    made = QuantizedLinear(
        columns, 24, bits=bits, group_size=group_size, activations=activations, smoothing=False,
        bias=True,
    )  # fmt: skip
    dense = torch.randn(24, columns, generator=generator)
    if bits != 4:
        integers, scale = quantize_per_row(dense, bits)
        made.weight.copy_(integers)
        made.scale.copy_(scale)
    else:
        made.weight.random_(generator=generator)
    if made.bias is not None:
        made.bias.data.normal_(generator=generator)
    if activations == "static":
        made.input_scale.fill_(0.031)
        made.input_zero_point.fill_(-17)
        made.zero_point_correction.copy_(made.weight.sum(1, dtype=torch.int32) * -17)
    return made


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_layers_are_bit_identical_with_every_kernel(activations, monkeypatch):
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for name in KERNELS:
        monkeypatch.setattr(kernels, "CPU_KERNEL", name)
        layer = layer_of(activations)
        found += [layer(rows) for _ in range(3)]
    assert all(torch.equal(one, found[0]) for one in found)


KINDS = [("dynamic", 7), ("static", 7), ("float", 8), ("float", 4)]


@pytest.mark.parametrize(("activations", "bits"), KINDS)
def test_compiled_layers_use_the_same_packed_weight(kernel, activations, bits):
    layer, rows = layer_of(activations, bits), torch.randn(20, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        expected = layer(rows)
        for _ in range(3):
            torch.testing.assert_close(compiled(rows), expected)
        assert torch.equal(compiled(rows[:7]), layer(rows[:7]))
    if kernel != "int_mm" or activations == "float":
        assert kernels.prepared_bytes(layer.weight) > 0


@pytest.mark.parametrize(("activations", "bits"), KINDS)
def test_exported_layers_need_no_operator_of_this_package(kernel, activations, bits):
    layer, rows = layer_of(activations, bits), torch.randn(20, 64)
    shape = ({0: torch.export.Dim("rows", max=512)},)
    program = torch.export.export(layer.eval(), (rows,), dynamic_shapes=shape)
    assert not any("lightning_compress" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(rows[:9]), layer(rows[:9]))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_only_layer_is_its_dequantized_weight(bits):
    layer, rows = layer_of("float", bits), torch.randn(20, 64)
    expected = torch.nn.functional.linear(rows, layer.dequantized(), layer.bias)
    for _ in range(3):
        torch.testing.assert_close(layer(rows), expected)
    assert kernels.prepared_bytes(layer.weight) == 4 * 24 * 64
    layer.scale.mul_(2)
    doubled = torch.nn.functional.linear(rows, layer.dequantized(), layer.bias)
    torch.testing.assert_close(layer(rows), doubled)


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_biases_have_gradients_without_those_of_the_inputs(activations):
    layer = layer_of(activations)
    assert layer.bias is not None
    layer.bias.requires_grad_()
    for _ in range(3):
        layer.bias.grad = None
        layer(torch.randn(20, 64)).sum().backward()
        assert layer.bias.grad is not None
        assert torch.equal(layer.bias.grad, torch.full((24,), 20.0))


def test_gradients_pass_through_weight_only_layers():
    layer, rows = layer_of("float", 8), torch.randn(20, 64, requires_grad=True)
    for _ in range(3):
        rows.grad = None
        layer(rows).sum().backward()
        assert rows.grad is not None
        torch.testing.assert_close(rows.grad, layer.dequantized().sum(0).expand(20, -1))
