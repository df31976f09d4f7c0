"""Footprint of a model: parameters, multiply-accumulate operations, bytes on disk and in memory."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_compress.atomic import scratch_folder
from lightning_compress.models.forward import (
    device_of,
    evaluating,
    inputs_for,
    outputs_by,
    require_runs,
    without_cache,
)
from lightning_compress.models.modeling_kernels import prepared_bytes
from lightning_compress.models.modeling_quantized import QuantizedLinear, weights_of
from lightning_compress.saving import save_compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """The result of :func:`measure_footprint`.

    ``macs`` are per example; ``peak_memory_bytes`` is None on devices that keep no count.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: int
    peak_memory_bytes: int | None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters and those of them that are not zero; tied ones count once."""
    unpacked = {
        layer.weight: layer.integer_weight()
        for layer in model.modules()
        if isinstance(layer, QuantizedLinear)
    }
    parameters = [unpacked.get(parameter, parameter) for parameter in weights_of(model)]
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(int(torch.count_nonzero(parameter)) for parameter in parameters),
    )


def count_macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Count multiply-accumulate operations per example, by torch's own counter.

    Counted are matrix products, convolutions and attention. The counter does not support the fused
    attention kernel for CPUs, so attention is computed as two matrix products; causal attention
    counts in full.

    Args:
        model: a Hugging Face model.
        batch: one or several examples; padding counts, too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    inputs = inputs_for(model, batch)
    # Not supported by the counter.
    integer = {
        torch.ops.aten._int_mm: _matmul_flops,
        torch.ops.lightning_compress.int8_product: _linear_flops,
        torch.ops.lightning_compress.dequantized_linear: _linear_flops,
    }
    with (
        evaluating(model),
        sdpa_kernel(SDPBackend.MATH),
        # The counter looks for the graph of a parameter that a module is called with.
        torch.inference_mode(False),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=integer) as counter,
    ):
        model(**inputs, **without_cache(model))
    return int(counter.get_total_flops()) // 2 // len(next(iter(inputs.values())))


def _matmul_flops(left: torch.Size, right: torch.Size, **_: object) -> int:
    """Floating-point operations of a product of matrices of these shapes."""
    return 2 * left[0] * left[1] * right[1]


def _linear_flops(rows: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """The same of rows [M, K] and a weight of N rows, whose columns may be packed."""
    return 2 * rows[0] * rows[1] * weight[0]


def saved_size(model: "PreTrainedModel") -> int:
    """Bytes on disk of a model saved by ``save_compressed``.

    Weights, configuration, manifest and masks; not the tokenizer, which is the same for all.
    """
    with scratch_folder() as folder:
        saved = save_compressed(model, folder / "model")
        return sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())


def module_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers in memory, and of copies kept to multiply with.

    Tied ones count once.
    """
    parameters = list(model.parameters())
    return sum(tensor.nbytes for tensor in (*parameters, *model.buffers())) + sum(
        prepared_bytes(parameter) for parameter in parameters
    )


def peak_allocated(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of tensors that a call allocates, without those allocated before.

    On CUDA, by the caching allocator's count. On the CPU, by torch's profiler, which records every
    allocation of torch's allocator, also in compiled code, but not those that a library such as
    oneDNN makes itself. None on other devices, which keep no count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with (
        _quiet_profiler(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
    ):
        call()
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Silence the messages about start and stop that the profiler writes to stderr."""
    level = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99"
    try:
        yield
    finally:
        if level is None:
            del os.environ["KINETO_LOG_LEVEL"]
        else:
            os.environ["KINETO_LOG_LEVEL"] = level


def resident_bytes(field: str) -> int | None:
    """Bytes of this process, ``VmRSS`` or ``VmHWM`` (the peak since its reset); Linux only."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(one for one in status.read_text().splitlines() if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Reset the peak memory (``VmHWM``) of this process; Linux only."""
    counter = Path("/proc/self/clear_refs")
    if counter.is_file():
        counter.write_text("5")


def measure_footprint(model: "PreTrainedModel", batch: Mapping[str, Tensor]) -> Footprint:
    """Measure a model's parameters, MACs, and bytes on disk and in memory.

    The model is not moved or changed; its training flag is restored.

    Args:
        model: any Hugging Face model, with or without a head.
        batch: ``input_ids`` [B, S], ``pixel_values`` or what else the model takes. MACs are per
            example; peak memory is that of the weights and of a forward pass on the whole batch.

    Raises:
        InputError: the batch lacks inputs of the model.
    """
    require_runs(model, batch)
    inputs, forward = inputs_for(model, batch), outputs_by(model, model)
    parameters, nonzero = count_parameters(model)
    with evaluating(model):
        peak = peak_allocated(lambda: forward(**inputs), device_of(model))
    return Footprint(
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(model, batch),
        size_bytes=saved_size(model),
        peak_memory_bytes=None if peak is None else peak + module_bytes(model),
    )
