"""Captured inputs and outputs of the layers that compact blocks replace."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.models.hooks import Call, after_calls, before_calls
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.types import Batch


@dataclass(frozen=True)
class BlockIO:
    """One calibration batch at one group of layers.

    Args:
        hidden: [B, S, H] input of the group.
        args: further positional arguments of the layers.
        kwargs: keyword arguments of the layers, such as attention masks.
        target: [B, S, H] output of the group in the dense model.
        mask: boolean [B, S], true at tokens, false at padding.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Tensor
    mask: Tensor


@torch.no_grad()
def capture_targets(
    switches: Sequence[ReplacementSwitch], calibration: Calibration
) -> list[list[Tensor]]:
    """Capture the output of each group of layers in the dense model.

    Args:
        switches: all switches of the model, first to last.
        calibration: the examples.

    Returns:
        For each switch the outputs [B, S, H] of every batch.
    """
    outputs: list[list[Tensor]] = [[] for _ in switches]
    with _successors_up_to(0, switches):
        hooks = [
            (switch, lambda call, found=found: found.append(call.hidden_output))
            for switch, found in zip(switches, outputs, strict=True)
        ]
        with after_calls(hooks):
            for batch in calibration.batches:
                calibration.logits(batch)
    return outputs


@torch.no_grad()
def capture_block_io(
    switches: Sequence[ReplacementSwitch],
    index: int,
    calibration: Calibration,
    targets: Sequence[Tensor],
) -> list[BlockIO]:
    """Capture the input of one group of layers while all groups before it run their successors.

    Args:
        switches: all switches of the model, first to last.
        index: of the switch to capture.
        calibration: the examples.
        targets: outputs [B, S, H] of this group for every batch, from :func:`capture_targets`.
    """
    calls: list[Call] = []
    with _successors_up_to(index, switches), before_calls([(switches[index], calls.append)]):
        for batch in calibration.batches:
            calibration.logits(batch)
    return [
        BlockIO(
            call.hidden,
            tuple(_without_cache(value) for value in call.inputs[1:]),
            {
                name: _without_cache(value)
                for name, value in call.keywords.items()
                if name != "hidden_states"
            },
            target,
            _mask(batch, call.hidden),
        )
        for call, target, batch in zip(calls, targets, calibration.batches, strict=True)
    ]


def _mask(batch: Batch, hidden: Tensor) -> Tensor:
    """True at tokens, False at padding: boolean [B, S]; images have no padding."""
    if "input_ids" in batch:
        return token_mask(batch)
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def run_block(block: nn.Module, io: BlockIO) -> Tensor:
    """Output [B, S, H] of a block for a captured batch."""
    output: Tensor = block(io.hidden, *io.args, **io.kwargs)
    return output


@contextmanager
def _successors_up_to(index: int, switches: Sequence[ReplacementSwitch]) -> Iterator[None]:
    """Run the successors of the switches before ``index`` and the predecessors of the others."""
    with ExitStack() as stack:
        for place, switch in enumerate(switches):
            stack.enter_context(switch.routed(use_successor=place < index))
        yield


def _without_cache(argument: Any) -> Any:
    """Drop a key-value cache, which would keep the keys and values of every call."""
    from transformers import Cache

    return None if isinstance(argument, Cache) else argument
