"""Casting a model to 16 bits, as transformers does when it loads one in that dtype."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call

from lightning_compress.errors import InputError, first_line
from lightning_compress.models.forward import evaluating, inputs_for
from lightning_compress.models.manifest import QUANTIZATION_EDIT, StatePart, edits_of


def _recorded_dtype(model: nn.Module) -> str | None:
    dtypes = [edit["dtype"] for edit in edits_of(model, QUANTIZATION_EDIT) if "dtype" in edit]
    return dtypes[-1] if dtypes else None


def _restore_dtype_(model: nn.Module, dtype: str | None) -> None:
    if dtype is not None:
        cast_(model, getattr(torch, dtype))


DTYPE = StatePart("dtype", _recorded_dtype, _restore_dtype_)


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model as transformers does when it loads one in that dtype, in place.

    Buffers that no file holds, such as the frequencies of rotary position embeddings, keep their
    dtype, and so do the tensors that the model's class keeps in float32 (``wo`` of T5 in fp16).
    """
    for _, tensor, wanted in _with_dtypes(model, dtype):
        tensor.data = tensor.data.to(wanted)


@torch.no_grad()
def check_cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Check on a few tokens that a model runs in a dtype, where it runs at all.

    Some classes of transformers make tensors of float32 in between, or use operators that do not
    exist in 16 bits.

    Raises:
        InputError: it does not run.
    """
    examples = getattr(model, "dummy_inputs", None) or {}
    tokens = {name: value for name, value in examples.items() if isinstance(value, Tensor)}
    if "input_ids" in tokens:  # else transformers takes some of them for padding, and warns
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    with evaluating(model), isolate_rng():
        # The tensors are given to the call, as some models (CTRL) change their buffers in it.
        original = {name: tensor for name, tensor, _ in _with_dtypes(model, dtype)}
        if _failure(model, original, tokens) is not None:
            return
        cast: dict[str, Tensor] = {}
        made: dict[int, Tensor] = {}  # tied tensors stay tied
        for name, tensor, wanted in _with_dtypes(model, dtype):
            cast[name] = made.setdefault(id(tensor), tensor.to(wanted))
        failure = _failure(model, cast, tokens)
    if failure is not None:
        raise InputError(
            f"{type(model).__name__} does not run in {str(dtype).removeprefix('torch.')} "
            f"({failure}): choose another scheme"
        )


def _failure(model: nn.Module, tensors: dict[str, Tensor], tokens: dict[str, Tensor]) -> str | None:
    try:
        functional_call(model, tensors, kwargs=inputs_for(model, tokens))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        return first_line(error)
    return None


def _with_dtypes(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """The floating-point tensors of a model by name, each with the dtype that it is cast to."""
    transformer: Any = model
    plan = transformer._get_dtype_plan(dtype) if hasattr(model, "_get_dtype_plan") else {}
    kept = [re.compile(pattern.replace("*", ".*")) for pattern in plan]
    built = _dtypes_as_built(model, dtype)
    for prefix, module in model.named_modules():
        for tensors, unsaved in (
            (module._parameters, set()),
            (module._buffers, module._non_persistent_buffers_set),
        ):
            for key, tensor in tensors.items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                name = f"{prefix}.{key}" if prefix else key
                wanted = built.get(name, tensor.dtype if key in unsaved else dtype)
                if key not in unsaved and any(pattern.search(name) for pattern in kept):
                    wanted = torch.float32
                yield name, tensor, wanted


def _dtypes_as_built(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtypes that the class of a model gives its tensors where ``dtype`` is the default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(model.config))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        return {}  # a class of the user's own, which wants other arguments
    finally:
        torch.set_default_dtype(default)
    tensors = [*built.named_parameters(), *built.named_buffers()]
    return {name: tensor.dtype for name, tensor in tensors}
