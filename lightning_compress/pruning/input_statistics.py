"""Statistics of what units say, over the tokens of a calibration set."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration, in_one_piece, token_mask
from lightning_compress.models.structure import Units


@dataclass(frozen=True)
class InputStatistics:
    """Of the N inputs of a projection, over all tokens, in float64.

    ``second`` holds the mean products of two inputs: the diagonal of them [N], or all [N, N].
    """

    mean: Tensor
    second: Tensor

    def variance(self) -> Tensor:
        """[N], never negative."""
        squares = self.second if self.second.dim() == 1 else self.second.diagonal()
        return (squares - self.mean.square()).clamp(min=0)


@torch.no_grad()
def input_statistics(
    model: nn.Module, units: Sequence[Units], calibration: Calibration, *, products: bool = False
) -> dict[str, InputStatistics]:
    """Look at the inputs of the units' output projections; padding does not count.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples.
        products: keep the mean products of all pairs of inputs too.

    Returns:
        By name of the projection (``Units.output``).
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: Tensor

    def watch(name: str):  # type: ignore[no-untyped-def]  # a hook, for torch alone
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            said = inputs[0].reshape(*mask.shape, -1)[mask].double()
            pairs = said.T @ said if products else said.square().sum(0)
            counts[name] = counts.get(name, 0) + len(said)
            first[name] = first.get(name, 0) + said.sum(0)
            second[name] = second.get(name, 0) + pairs

        return hook

    hooks = [
        model.get_submodule(one.output).register_forward_pre_hook(watch(one.output))
        for one in units
    ]
    try:
        with in_one_piece(model):
            for batch in calibration.batches:
                mask = token_mask(batch)
                calibration.logits(batch)
    finally:
        for handle in hooks:
            handle.remove()
    return {
        name: InputStatistics(first[name] / count, second[name] / count)
        for name, count in counts.items()
    }
