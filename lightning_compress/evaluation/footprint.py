"""What a model costs before any clock runs: parameters, multiplications, bytes."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_compress.models.forward import device_of, evaluating, inputs_for, logits_by
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.saving import save_compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """What :func:`measure_footprint` finds.

    ``macs`` are per example; ``peak_memory_bytes`` is None on a device that cannot tell.
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
    parameters = [unpacked.get(parameter, parameter) for parameter in model.parameters()]
    return (
        sum(parameter.numel() for parameter in parameters),
        sum(int(torch.count_nonzero(parameter)) for parameter in parameters),
    )


def count_macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Count multiply-accumulate operations per example, by torch's own counter.

    That counts matrix products, convolutions and attention. It knows nothing of the fused
    attention for CPUs and would count none there, so attention is computed as two plain products
    meanwhile; causal attention counts in full.

    Args:
        model: a Hugging Face model.
        batch: one or several examples; padding is computed and so counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    inputs = inputs_for(model, batch)
    whole = {torch.ops.aten._int_mm: _whole_product}  # which the counter does not know
    with (
        evaluating(model),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=whole) as counter,
    ):
        logits_by(model, model)(**inputs)
    return int(counter.get_total_flops()) // 2 // len(batch["input_ids"])


def _whole_product(left: torch.Size, right: torch.Size, **_: object) -> int:
    """Operations of a product of matrices of these shapes."""
    return 2 * left[0] * left[1] * right[1]


def saved_size(model: "PreTrainedModel") -> int:
    """Bytes on disk of a model saved by ``save_compressed``.

    Weights, configuration, manifest and masks; not the tokenizer, which is the same for all.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = save_compressed(model, Path(folder) / "model")
        return sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())


def module_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers in memory; tied ones count once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def peak_allocated(call: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes of tensors that a call holds at one time beyond those that were there before.

    On CUDA by the caching allocator's own count. On the CPU by torch's profiler, which sees every
    allocation of torch's allocator, also inside compiled code, but not what a library such as
    oneDNN takes for itself. None on other devices, which keep no such count.
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
    """The profiler announces its start and stop on stderr unless its log level says otherwise."""
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
    """Memory of this process, ``VmRSS`` or ``VmHWM`` (the most since it was reset); Linux only."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(one for one in status.read_text().splitlines() if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Count the most memory of this process from now on; Linux only."""
    counter = Path("/proc/self/clear_refs")
    if counter.is_file():
        counter.write_text("5")


def measure_footprint(model: "PreTrainedModel", batch: Mapping[str, Tensor]) -> Footprint:
    """Measure what a model costs in memory, on disk and in multiplications.

    The model is used where it is and as it is; its training flag is restored.

    Args:
        model: a Hugging Face model.
        batch: ``input_ids`` [B, S] and what else the model takes. MACs are per example of it;
            the peak memory is that of the weights and of a forward pass on all of it.
    """
    inputs, forward = inputs_for(model, batch), logits_by(model, model)
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
