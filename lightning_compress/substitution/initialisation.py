"""Where a compact block starts: projections and layers from what passes through the old ones.

Sources: the principal components of the activations as a basis are from Ashkboos et al.,
"SliceGPT: Compress Large Language Models by Deleting Rows and Columns", 2024,
https://arxiv.org/abs/2401.15024.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.choice import Choice
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.structure import FAMILIES
from lightning_compress.substitution.passing import Passage, through
from lightning_compress.substitution.slicing import slice_layers_

Start = Literal["random", "zero", "components", "least_squares", "sliced"]
"""``random``: everything; ``zero``: the same, but that the up-projection says nothing at first;
``components``: as ``zero``, and the down-projection keeps the principal components of what goes in;
``least_squares``: besides, the up-projection is fitted to what the old layers add; ``sliced``:
besides, the narrow layers are made of the old ones, seen through the principal components."""

_RIDGE = 1e-2  # of the mean diagonal


@torch.no_grad()
def start_(choice: Choice, passages: Sequence[Passage], start: Start, family: str) -> float | None:
    """Set the weights of a compact block, in place.

    Args:
        choice: of the block, whose weights are random and whose up-projection is zero, and the
            layers that it replaces.
        passages: what passes through them.
        start: from where.
        family: of the model.

    Returns:
        The share of the variance of what goes in that the down-projection keeps, where it is made
        of principal components.
    """
    block = choice.new
    if start == "zero":
        return None
    if start == "random":
        nn.init.normal_(block.up.weight, std=0.02)
        return None
    basis, mean, kept = _components(passages, block.down.out_features)
    block.down.weight.copy_(torch.linalg.pinv(basis.double()))
    block.down.bias.copy_(-(block.down.weight @ mean))
    if start == "sliced":
        slice_layers_(choice, basis, mean, FAMILIES[family])
    if start != "components":
        _fit_up_(block, passages)
    return kept


def _components(passages: Sequence[Passage], width: int) -> tuple[Tensor, Tensor, float]:
    """A basis [H, R], the mean [H], and the share of the variance that it keeps.

    In the basis the mean variance is one.
    """
    tokens = torch.cat([one.hidden[one.mask] for one in passages])
    mean, covariance = tokens.double().mean(0), tokens.double().T.cov(correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width]
    scale = values.mean().sqrt().clamp(min=1e-6)
    kept = float(values.sum() / covariance.trace().clamp(min=1e-30))
    return (vectors * scale).to(tokens.dtype), mean.to(tokens.dtype), kept


def _fit_up_(block: CompactBlock, passages: Sequence[Passage]) -> None:
    """Ridge regression of what the old layers add on what the narrow layers say."""
    features, added = [], []
    for one in passages:
        said: list[Tensor] = []
        hook = block.up.register_forward_pre_hook(
            lambda module, inputs, said=said: said.append(inputs[0])
        )
        through(block, one)
        hook.remove()
        features.append(said[0][one.mask].double())
        added.append((one.target - one.hidden)[one.mask].double())
    inputs, outputs = torch.cat(features), torch.cat(added)
    means = inputs.mean(0), outputs.mean(0)
    inputs, outputs = inputs - means[0], outputs - means[1]
    gram = inputs.T @ inputs
    ridge = _RIDGE * gram.diagonal().mean()
    weight = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
        inputs.T @ outputs,
    ).T
    block.up.weight.copy_(weight)
    block.up.bias.copy_(means[1] - weight @ means[0])
