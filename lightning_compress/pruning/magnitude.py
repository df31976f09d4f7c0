"""Magnitude pruning: which weights, and masks that keep the largest, unstructured or n:m.

Sources:
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
    https://arxiv.org/abs/1506.02626; here to an exact sparsity, over all weights or per layer.
    n:m: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021,
    https://arxiv.org/abs/2104.08378, for 2:4; here for any n and m.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.structure import linear_at, structure_of
from lightning_compress.pruning.kth_smallest import drop_smallest_, magnitude_keys

_SHOWN = 20  # names listed in an error


def prunable_weights(model: nn.Module, patterns: list[str] | None) -> list[str]:
    """Names of the parameters to prune, relative to ``model``.

    Args:
        model: any module; a Hugging Face transformer of a known family if ``patterns`` is None.
        patterns: shell patterns on parameter names, such as ``*.attention.*.weight``. None selects
            the weights of the linear layers of the blocks, without embeddings, norms, biases and
            the classifier.

    Raises:
        InputError: a pattern matches nothing, the model is of no known family, or a weight is
            computed from other tensors.
    """
    if patterns is None:
        layers = structure_of(model).linear_names()
        for layer in layers:
            linear_at(model, layer)  # raises if its weight is no parameter
        return [f"{layer}.weight" for layer in layers]
    names = [name for name, _ in model.named_parameters()]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]
    if idle or not patterns:
        listed = "\n  ".join(names[:_SHOWN])
        more = f"\n  and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise InputError(
            f"weights: {', '.join(map(repr, idle)) or 'an empty list'} matches no parameter of "
            f"{type(model).__name__}, which has:\n  {listed}{more}"
        )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def input_dims(model: nn.Module, names: list[str], multiple: int) -> dict[str, int]:
    """The input dimension of each weight, 0 or 1, for n:m patterns.

    Raises:
        InputError: a weight belongs to no linear layer, or the number of inputs is no multiple of
            ``multiple``.
    """
    from transformers.pytorch_utils import Conv1D

    dims = {}
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        if not name.endswith("weight") or not isinstance(module, nn.Linear | Conv1D):
            raise InputError(f"pattern: {name} is no weight of a linear layer; leave it out")
        dims[name] = 0 if isinstance(module, Conv1D) else 1
        inputs = module.weight.shape[dims[name]]
        if inputs % multiple:
            raise InputError(
                f"pattern: {name} has {inputs} inputs, which is not a multiple of {multiple}; "
                "leave it out with weights, or choose another pattern"
            )
    return dims


@dataclass(frozen=True)
class NM:
    """The n:m pattern: of every ``m`` consecutive weights along the input ``n`` are kept."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> "NM":
        """Read ``"2:4"``.

        Raises:
            InputError: the text is not ``n:m`` with 0 < n < m.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise InputError(f"pattern: {text!r} is not n:m with 0 < n < m, such as '2:4'")
        return cls(int(match[1]), int(match[2]))

    @property
    def sparsity(self) -> float:
        """Fraction of zeros that the pattern implies, in (0, 1)."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @torch.no_grad()
    def outside(self, weight: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
        """Which weights are not among the n largest of their group of m.

        Args:
            weight: any shape; the size of ``dim`` is a multiple of m.
            mask: boolean, shaped like ``weight``; False entries rank below all others.
            dim: the dimension along which m consecutive weights form a group.

        Returns:
            Boolean, shaped like ``weight``. Ties keep the earlier entry.
        """
        dim %= weight.dim()
        grouped = torch.unflatten(magnitude_keys(weight, mask), dim, (-1, self.m))
        keys = grouped.unbind(dim + 1)
        larger = [torch.zeros_like(key, dtype=torch.uint8) for key in keys]
        for late in range(self.m):
            for early in range(late):
                early_wins = keys[early] >= keys[late]
                larger[late] += early_wins
                larger[early] += early_wins.logical_not_()
        return (torch.stack(larger, dim + 1) >= self.n).reshape(weight.shape)


def target_sparsity(sparsity: float | None, pattern: NM | None) -> float:
    """The final fraction of zeros, in [0, 1), by the options ``sparsity`` and ``pattern``.

    Raises:
        InputError: neither is given, they contradict each other, or ``sparsity`` is not in [0, 1).
    """
    if sparsity is not None and not 0 <= sparsity < 1:
        raise InputError(
            f"sparsity: {sparsity} is not in [0, 1): it is the fraction of weights set to zero, "
            "such as 0.8 for 80 %"
        )
    if pattern is None:
        if sparsity is None:
            raise InputError("sparsity: give the fraction of weights to prune, such as 0.8")
        return sparsity
    if sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-3:
        raise InputError(
            f"sparsity: {sparsity} contradicts pattern: {pattern}, which means "
            f"{pattern.sparsity:g}; leave one of them out"
        )
    return pattern.sparsity


Scope = Literal["global", "layer"]


def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    masks: Mapping[str, Tensor] | None = None,
    scope: Scope = "global",
    pattern: NM | None = None,
    input_dims: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Masks that keep the largest weights and prune ``round(sparsity * count)`` of them.

    Weights that are pruned in ``masks`` stay so and count. Of equal magnitudes the earlier is kept.

    Args:
        weights: floating point, any shapes, by name.
        sparsity: fraction of zeros to reach, in [0, 1].
        masks: the masks so far, boolean, True is kept; a weight without a mask is dense.
        scope: one threshold over all weights at once, or the same sparsity for each of them.
        pattern: prune only outside the n largest of each group of m. If ``sparsity`` is at least
            that of the pattern, everything outside is pruned and the pattern holds exactly.
        input_dims: the input dimension of each weight, for ``pattern``; default: the last one.

    Returns:
        Boolean masks by name, shaped like the weights; True is kept. ``masks`` is not changed.

    Raises:
        InputError: ``sparsity`` is outside [0, 1], or a weight is NaN or infinite.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity: {sparsity} is not a fraction of zeros in [0, 1]")
    masks, dims = masks or {}, input_dims or {}
    after = {name: _mask(weight, masks.get(name)) for name, weight in weights.items()}
    pruned = {name: mask.numel() - int(torch.count_nonzero(mask)) for name, mask in after.items()}
    if pattern is not None:
        for name, mask in after.items():
            mask &= pattern.outside(weights[name], mask, dims.get(name, -1))
    everything = sparsity >= pattern.sparsity if pattern is not None else sparsity == 1
    for group in [list(weights)] if scope == "global" else [[name] for name in weights]:
        candidates = {name: after[name] for name in group}
        _prune_(candidates, weights, None if everything else sparsity, pruned)
    if pattern is not None:
        for name, weight in weights.items():
            before = _mask(weight, masks.get(name))
            _keep_inside_(after[name], before, weight, pattern, dims.get(name, -1))
    return after


def _keep_inside_(after: Tensor, before: Tensor, weight: Tensor, pattern: NM, dim: int) -> None:
    """Keep the n largest of each group, which were no candidates and are cleared in ``after``.

    Finding them again takes less memory than storing them.
    """
    after |= pattern.outside(weight, before, dim).logical_not_().logical_and_(before)


def _prune_(
    candidates: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    sparsity: float | None,
    pruned: Mapping[str, int],
) -> None:
    """Clear the smallest candidates until ``sparsity`` of all entries is pruned; None: all of them.

    ``pruned`` counts the entries of each mask that were pruned before.
    """
    count = sum(int(torch.count_nonzero(mask)) for mask in candidates.values())
    if sparsity is not None:
        due = round(sparsity * sum(mask.numel() for mask in candidates.values()))
        count = min(max(due - sum(pruned[name] for name in candidates), 0), count)
    drop_smallest_(candidates, {name: weights[name] for name in candidates}, count)


def _mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of a mask on the device of the weight; all True without a mask."""
    if mask is None:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return mask.to(weight.device, copy=True)
