"""The k-th smallest magnitude over any number of tensors, exact, and masks by that threshold.

A radix select on the bits of the floats: without the sign bit, the bits of a float32 read as an
integer are ordered like the magnitude. The upper digit of the threshold is estimated from a
sample. One pass then counts the keys below a window around the estimate and, exactly, the keys in
the window; if the threshold lies outside, the upper digit is counted in full. Nothing is sorted,
and only chunks are copied.

Comparisons are written as subtractions and shifts, which run at memory bandwidth on a CPU, where
torch's comparison of integers takes seven times as long.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_compress.errors import InputError

_CHUNK = 1 << 18  # weights handled at a time
_SAMPLE = 1 << 20  # about how many weights the estimate is made from
_DIGIT = 15  # the upper digit of a key is the key shifted right by this
_WINDOW = 17  # the window holds 2 to this power keys, several times the error of the estimate
_LARGEST = 0x7F800000  # the key of the largest finite float32; infinity and NaN have larger ones


@torch.no_grad()
def drop_smallest_(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], count: int) -> None:
    """Clear the ``count`` entries of ``masks`` that belong to the smallest weights, in place.

    Only entries that are True take part. Of equal magnitudes the later ones are cleared. Needs a
    few megabytes beside the masks, whatever the number of weights.

    Args:
        masks: boolean and contiguous, by name; changed in place.
        weights: floating point, on any device, shaped and named like the masks.
            float32, float16 and bfloat16 compare exactly, also with one another; float64 is
            rounded to float32 for the comparison.
        count: how many True entries to clear in all.

    Raises:
        InputError: a weight is NaN or infinite; the masks are then unchanged.
        ValueError: ``count`` is negative or larger than the number of True entries.
    """
    total = sum(mask.numel() for mask in masks.values())
    candidates = sum(int(torch.count_nonzero(mask)) for mask in masks.values())
    if not 0 <= count <= candidates:
        raise ValueError(f"cannot drop {count} of {candidates} weights")
    if count == 0:
        return
    # Entries that take no part have key 0, below all others: they only shift the rank.
    threshold, ties_kept = _threshold(masks, weights, count + total - candidates)
    for _, keys, mask in _chunks(masks, weights):
        distance = threshold - keys  # negative above the threshold
        if ties_kept:
            ties = _zeros(distance)[:ties_kept]
            ties_kept -= len(ties)
            distance[ties] = -1
        mask.copy_(distance.bitwise_right_shift_(31))


def magnitude_keys(weight: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """Integers (int32) that order like ``|weight|``: 1 for zero, 0 where ``mask`` is False."""
    bits = torch.bitwise_and(weight.float().view(torch.int32), 0x7FFFFFFF, out=out)
    return bits.add_(1).mul_(mask)


def _chunks(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name, the keys and the piece of the mask of every chunk, in order.

    The keys are valid until the next chunk, which overwrites them.
    """
    keys = torch.empty(0)
    for name, mask in masks.items():
        flat = weights[name].detach().reshape(-1)
        if not len(keys) or keys.device != flat.device:
            keys = torch.empty(_CHUNK, dtype=torch.int32, device=flat.device)
        pieces = torch.split(mask.view(-1), _CHUNK)
        for values, piece in zip(torch.split(flat, _CHUNK), pieces, strict=True):
            yield name, magnitude_keys(values, piece, keys[: len(values)]), piece


def _threshold(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], rank: int
) -> tuple[int, int]:
    """The key of ``rank`` (1 is the smallest), and how many entries of that key rank higher."""
    total = sum(mask.numel() for mask in masks.values())
    for stride in (total // _SAMPLE | 1, 1):  # odd, to wander over the columns
        estimate = _estimate(masks, weights, rank / total, stride)
        lowest = max(estimate - (1 << _WINDOW - 1), 1)
        below, counts = _count(masks, weights, lowest)
        upto = counts.cumsum(0).add_(below)
        if below < rank <= int(upto[-1]):
            position = int(torch.searchsorted(upto, rank))
            return lowest + position, int(upto[position]) - rank
    raise AssertionError("counting everything cannot miss the threshold")


def _estimate(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], quantile: float, stride: int
) -> int:
    """The key at ``quantile`` of every ``stride``-th weight, exact up to the lower digit."""
    digits = (_LARGEST >> _DIGIT) + 1
    counts = torch.zeros(digits, dtype=torch.int64)
    for name, mask in masks.items():
        flat = weights[name].detach().reshape(-1)
        for start in range(0, mask.numel(), _CHUNK * stride):
            piece = slice(start, start + _CHUNK * stride, stride)
            keys = magnitude_keys(flat[piece], mask.view(-1)[piece])
            keys.bitwise_right_shift_(_DIGIT).clamp_(0, digits - 1)
            counts += torch.bincount(keys, minlength=digits).cpu()
    cumulative = counts.cumsum(0)
    rank = max(1, round(quantile * int(cumulative[-1])))
    digit = int(torch.searchsorted(cumulative, rank))
    return (digit << _DIGIT) + (1 << _DIGIT - 1)


def _count(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], lowest: int
) -> tuple[int, Tensor]:
    """How many keys are below ``lowest``, and how often each key of the window above occurs."""
    below = 0
    counts = torch.zeros(1 << _WINDOW, dtype=torch.int64)
    for name, keys, _ in _chunks(masks, weights):
        least, greatest = keys.aminmax()
        # Adding one to the highest NaN made it negative.
        if int(least) < 0 or int(greatest) > _LARGEST:
            raise InputError(
                f"the weight {name!r} holds NaN or infinite values, so it cannot be pruned by "
                "magnitude: the training has diverged; lower the learning rate or clip gradients"
            )
        digits = keys.sub_(lowest)
        below -= int((digits >> 31).sum(dtype=torch.int32))
        inside = digits[_zeros(digits >> _WINDOW)]
        # Few, unless many weights are equal; bincount would scan the whole window each time.
        counts.index_add_(0, inside.cpu(), torch.ones(len(inside), dtype=torch.int64))
    return below, counts


def _zeros(numbers: Tensor) -> Tensor:
    """Positions of the zeros in a flat tensor: ``nonzero`` of the negation, eight at a time."""
    zero = ~numbers.bool()
    whole = len(zero) // 8 * 8
    words = zero[:whole].view(torch.int64).nonzero()
    nearby = (words * 8 + torch.arange(8, device=zero.device)).flatten()
    nearby = torch.cat([nearby, torch.arange(whole, len(zero), device=zero.device)])
    return nearby[zero[nearby]]
