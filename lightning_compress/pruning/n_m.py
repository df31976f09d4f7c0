"""The n:m pattern: at most n of every m consecutive weights along the input are kept.

Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378, for 2:4.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.pruning.threshold import magnitude_keys


@dataclass(frozen=True)
class NM:
    """Keep the ``n`` largest of every ``m`` consecutive weights along the input dimension."""

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
        """Fraction of zeros that the pattern implies."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @torch.no_grad()
    def outside(self, weight: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
        """Which weights are not among the n largest of their group.

        Args:
            weight: any shape; the size of ``dim`` is a multiple of m.
            mask: boolean, shaped like ``weight``; what is False ranks below everything else.
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
    """The final fraction of zeros that the options ``sparsity`` and ``pattern`` ask for.

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
            raise InputError("sparsity: say what fraction of the weights to prune, such as 0.8")
        return sparsity
    if sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-3:
        raise InputError(
            f"sparsity: {sparsity} contradicts pattern: {pattern}, which means "
            f"{pattern.sparsity:g}; leave one of them out"
        )
    return pattern.sparsity
