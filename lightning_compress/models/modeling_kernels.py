"""Products with integer weights, by the kernel that the processor has for them.

This file needs torch only. It is copied into the folder of every quantized model, beside
``modeling_quantized.py``.

Int8 products are sums in int32, and every kernel gives the same sums:

- ``int_mm``: ``torch._int_mm``. On CUDA, and on CPUs with AVX512-VNNI or AMX; PyTorch calls oneDNN
  for it there. On other CPUs PyTorch has a scalar loop only, which is never used.
- ``fbgemm``: FBGEMM's product with a packed weight, on other x86 CPUs. It adds two neighbouring
  products in 16 bits there, which is exact for weights within ±64 only; others take ``float32``.
- ``float32``: everywhere else. Integers are multiplied in float32, in blocks of columns so small
  that every partial sum is below 2^24, up to which float32 represents all integers.

FBGEMM's packed weights and float32 copies are made when a weight is used for the second time: a
weight that changes in every step, as in quantization-aware training, is never packed. They are
released with the weight, and are never saved. Source of FBGEMM: Khudia et al., "FBGEMM: Enabling
High-Performance Low-Precision Deep Learning Inference", 2021, https://arxiv.org/abs/2101.05615.
"""

import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

Kernel = Literal["int_mm", "fbgemm", "float32"]

INPUT_QMIN, INPUT_QMAX = -128, 127
"""Range of int8 inputs."""

# torch._int_mm on CUDA takes more than 16 rows, and columns in multiples of eight.
_CUDA_ROWS, _CUDA_COLUMNS = 17, 8
# Largest weight of which two, times 255 each, add up to at most 2^15 - 1.
_LARGEST_PACKED = 64
_EXACT = 2**24  # float32 represents all integers up to it
_EXACT_COLUMNS = _EXACT // (128 * 127)
_UINT8_OFFSET = 128  # FBGEMM's inputs are uint8


def fastest_cpu_kernel() -> Kernel:
    """The fastest exact kernel for int8 products on this CPU."""
    if torch.cpu.get_capabilities().get("avx512_vnni") and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "int_mm"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "fbgemm" if x86 and "fbgemm" in torch.backends.quantized.supported_engines else "float32"


CPU_KERNEL: Kernel = fastest_cpu_kernel()
"""The kernel for int8 products on the CPU; tests and benchmarks may set another one."""


def int8_product(
    centred: Tensor, weight: Tensor, zero_point: Tensor | None, correction: Tensor | None
) -> Tensor:
    """Multiply int8 inputs by an int8 weight, with exact sums.

    Args:
        centred: integers minus the zero point, [M, K] float32; the integers are in
            [INPUT_QMIN, INPUT_QMAX].
        weight: [N, K] int8.
        zero_point: [1] int32; None: 0.
        correction: the zero point times the sum of each row of the weight, [N] int32; None: 0.

    Returns:
        The product of ``centred`` and the weight, [M, N]: int32, or the nearest float32.
    """
    if weight.is_cuda or (weight.device.type == "cpu" and CPU_KERNEL == "int_mm"):
        product = _int_mm(_integers(centred, zero_point).to(torch.int8), weight)
        return product if correction is None else product - correction
    # An exported program must run without this file.
    if weight.device.type != "cpu" or torch.compiler.is_exporting():
        return _float32_product(_integers(centred, zero_point), weight.float(), correction)
    product = torch.ops.lightning_compress.int8_product(
        centred.detach(), weight, zero_point, correction
    )
    return product  # type: ignore[no-any-return]  # torch.ops is untyped


def dequantized_linear(
    rows: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None
) -> Tensor:
    """Multiply floating-point inputs by a quantized weight.

    On the CPU the dequantized weight is kept from its second use on: dequantizing it for every
    product would take longer than a short text's product itself.

    Args:
        rows: [M, K] float.
        weight: integers, see :func:`dequantize`.
        scale: see :func:`dequantize`.
        bits: of a weight.
        bias: [N], or None.

    Returns:
        [M, N], of the dtype of ``rows``.
    """
    inputs = (rows,) if bias is None else (rows, bias)
    differentiated = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    if weight.device.type != "cpu" or torch.compiler.is_exporting() or differentiated:
        return functional.linear(rows, dequantize(weight, scale, bits).to(rows.dtype), bias)
    outputs = torch.ops.lightning_compress.dequantized_linear(
        rows.detach(), weight, scale, bits, bias
    )
    return outputs  # type: ignore[no-any-return]  # torch.ops is untyped


def dequantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Turn an integer weight into a floating-point one.

    Args:
        weight: [N, K] int8; of 4 bits packed, [N, K / 2] uint8.
        scale: [N, groups] float.
        bits: of a weight.

    Returns:
        [N, K] of the dtype of ``scale``.
    """
    integers = unpack_int4(weight) if bits == 4 else weight
    groups = integers.view(*scale.shape, -1) * scale.unsqueeze(-1)
    return groups.view(integers.shape)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack two int4 values from each byte: [..., N / 2] uint8 to [..., N] int8."""
    both = packed.view(torch.int8)
    # Shifting left and back extends the sign.
    return torch.stack([(both << 4) >> 4, both >> 4], dim=-1).flatten(-2)


def _integers(centred: Tensor, zero_point: Tensor | None) -> Tensor:
    return centred if zero_point is None else centred + zero_point


def _int_mm(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda:
        rows, columns = left.shape[0], right.shape[0]  # len() would be a constant when traced
        padding = -left.shape[1] % _CUDA_COLUMNS
        left = functional.pad(left, (0, padding, 0, max(0, _CUDA_ROWS - rows)))
        right = functional.pad(right, (0, padding, 0, -columns % _CUDA_COLUMNS))
        return torch._int_mm(left, right.t())[:rows, :columns]
    return torch._int_mm(left, right.t())


def _float32_product(integers: Tensor, weight: Tensor, correction: Tensor | None) -> Tensor:
    """The product of integers stored in float32, minus the correction."""
    columns = integers.split(_EXACT_COLUMNS, 1), weight.split(_EXACT_COLUMNS, 1)  # type: ignore[no-untyped-call]
    products = [functional.linear(left, right) for left, right in zip(*columns, strict=True)]
    if len(products) == 1 and correction is None:
        return products[0]
    product = sum(product.to(torch.int32) for product in products)
    assert isinstance(product, Tensor)
    return product if correction is None else product - correction


@dataclass
class _Prepared:
    """What was made of a weight for its kernel, and the state that it was made in."""

    state: tuple[Any, ...]
    made: Any = None
    bytes: int = 0


_prepared = WeakTensorKeyDictionary()


def prepared_bytes(weight: Tensor) -> int:
    """Bytes in memory of what is kept for the products with a weight, besides the weight."""
    return _prepared[weight].bytes if weight in _prepared else 0


def _from_second_use(
    weight: Tensor, state: tuple[Any, ...], make: Callable[[], tuple[Any, int]]
) -> Any:
    """What ``make`` returns, with its bytes, kept until the weight or ``state`` changes.

    None at the first use, and for tensors made in inference mode, whose changes are not counted.
    """
    if weight.is_inference():
        return None
    state = (weight._version, CPU_KERNEL, *state)
    entry = _prepared.get(weight)  # type: ignore[no-untyped-call]
    if entry is None or entry.state != state:
        _prepared[weight] = _Prepared(state)
        return None
    if entry.made is None:
        entry.made, entry.bytes = make()
    return entry.made


class _Floats:
    """A weight in float32.

    Args:
        weight: integers, [N, K] float32.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._largest_sum = float(weight.abs().sum(1).max())

    def in_one_block(self, zero_point: Tensor | None) -> bool:
        """Whether the sums of all columns are exact, whatever the inputs are."""
        largest = INPUT_QMAX if zero_point is None else INPUT_QMAX - INPUT_QMIN
        return self._largest_sum * largest <= _EXACT


def _packed(weight: Tensor) -> tuple[Any, int]:
    """FBGEMM's packed weight, or a float32 copy if that is not exact; and the bytes."""
    smallest, largest = weight.aminmax()
    if CPU_KERNEL == "float32" or max(-int(smallest), int(largest)) > _LARGEST_PACKED:
        return _Floats(weight.float()), 4 * weight.numel()
    rows, engine = len(weight), torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors will be removed from a future torch
        torch.backends.quantized.engine = "fbgemm"
        try:
            quantized = torch._make_per_channel_quantized_tensor(
                weight, torch.ones(rows), torch.zeros(rows, dtype=torch.long), 0
            )
            return torch.ops.quantized.linear_prepack(quantized), weight.numel()
        finally:
            torch.backends.quantized.engine = engine


def _int8_product(
    centred: Tensor, weight: Tensor, zero_point: Tensor | None, correction: Tensor | None
) -> Tensor:
    if not len(centred):
        return centred.new_zeros(0, len(weight))
    made = _from_second_use(weight, (), lambda: _packed(weight))
    if made is None or isinstance(made, _Floats):
        with torch.autocast("cpu", enabled=False):  # bf16 sums would not be exact
            floats = made or _Floats(weight.float())
            if floats.in_one_block(zero_point):
                return functional.linear(centred, floats.weight)
            integers = _integers(centred, zero_point)
            return _float32_product(integers, floats.weight, correction).float()
    zero = _UINT8_OFFSET + (0 if zero_point is None else int(zero_point))
    # Its own rounding would add the zero point first, which moves 1.4999999 to 1.5. Of integers it
    # changes nothing.
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        centred.contiguous(), 1.0, zero, made
    )
    return product  # type: ignore[no-any-return]  # torch.ops is untyped


def _dequantized_linear(
    rows: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None
) -> Tensor:
    def make() -> tuple[Tensor, int]:
        floats = dequantize(weight, scale, bits).to(rows.dtype)
        return floats, floats.nbytes

    version = None if scale.is_inference() else scale._version
    floats = _from_second_use(weight, (version, rows.dtype), make)
    with torch.autocast("cpu", enabled=False):
        return functional.linear(
            rows,
            make()[0] if floats is None else floats,
            None if bias is None else bias.to(rows.dtype),
        )


def _register() -> None:
    """Make both products operators, which the compiler calls as they are.

    The copy of this file in a saved model's folder finds them registered already.
    """
    library = torch.library.Library("lightning_compress", "FRAGMENT")  # type: ignore[no-untyped-call]
    int8 = "int8_product(Tensor centred, Tensor weight, Tensor? zero_point, Tensor? correction)"
    linear = "dequantized_linear(Tensor rows, Tensor weight, Tensor scale, int bits, Tensor? bias)"
    for schema, kernel, dtype in (
        (int8, _int8_product, torch.float32),
        (linear, _dequantized_linear, None),
    ):
        name = schema.split("(")[0]
        if hasattr(torch.ops.lightning_compress, name):
            continue
        library.define(f"{schema} -> Tensor")  # type: ignore[no-untyped-call]
        library.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]

        def shape(inputs: Tensor, weight: Tensor, *_: Any, dtype: Any = dtype) -> Tensor:
            return inputs.new_empty((inputs.shape[0], weight.shape[0]), dtype=dtype)

        torch.library.register_fake(f"lightning_compress::{name}", shape, lib=library)
    _libraries.append(library)


_libraries: list[Any] = []  # operators live as long as their library
_register()
