"""Where a compact block starts: projections and layers from what passes through the old ones.

Sources: the principal components of the activations as a basis are from Ashkboos et al.,
"SliceGPT: Compress Large Language Models by Deleting Rows and Columns", 2024,
https://arxiv.org/abs/2401.15024.

Narrow layers made of wide ones: what these compute, as seen in a smaller basis.

Source: after Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and
Columns", 2024, https://arxiv.org/abs/2401.15024. Other than there, heads and neurons are left out
too, and norms, which would be others in the basis, stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.families import FAMILIES, Family
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.structure import linear_at, output_dim, outputs_of
from lightning_compress.models.switch import Choice
from lightning_compress.substitution.captured import Passage, through

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


@dataclass(frozen=True)
class _Linear:
    """A linear layer's weight [outputs, inputs] and bias [outputs], or a part of its outputs."""

    weight: Tensor
    bias: Tensor


def slice_layers_(choice: Choice, basis: Tensor, mean: Tensor, family: Family) -> None:
    """Make the narrow layers of the old ones, in place.

    Of an old layer those heads and neurons are taken whose weights are largest, and of each head
    the largest of its dimensions; what there are too few of stays random and says nothing.

    Args:
        choice: a compact block, whose down-projection is the inverse of ``basis``, and old layers.
        basis: [H, R]; a wide vector is the basis times a narrow one, plus ``mean``.
        mean: [H].
        family: of the model.
    """
    block = choice.new
    inverse = block.down.weight
    if family.norm_first:  # which takes the mean away
        mean = torch.zeros_like(mean)
    for index, narrow in enumerate(block.layers):
        old = choice.old[index * len(choice.old) // len(block.layers)]
        for kind in (family.heads, family.neurons):
            wide = [part for name in kind.inputs for part in _parts(old, name, kind.parts)]
            output = _parts(old, kind.output, 1)[0]
            if kind is family.heads:
                sizes = _head_size(old, family), _head_size(narrow, family)
                rows = outputs_of(linear_at(narrow, kind.inputs[0])) // kind.parts
                between, out = _largest_heads(wide, output, sizes, rows // sizes[1])
                chosen = [between, between, out]
                heads = torch.arange(len(out) // min(sizes)) * sizes[1]
                places = (heads[:, None] + torch.arange(min(sizes))).flatten()
                for random in vars(_parts(narrow, kind.inputs[0], kind.parts)[0]).values():
                    random.zero_()  # or dimensions that no old one fills would blur the scores
                wide[0] = _Linear(
                    *(x * (sizes[1] / sizes[0]) ** 0.5 for x in vars(wide[0]).values())
                )
            else:
                rows = outputs_of(linear_at(narrow, kind.inputs[0]))
                strength = wide[-1].weight.norm(dim=1) * output.weight.norm(dim=0)
                out = strength.topk(min(rows, len(strength))).indices.sort().values
                chosen = [out] * len(wide)
                places = torch.arange(len(out))
            small = [
                _Linear(one.weight[sel] @ basis, one.bias[sel] + one.weight[sel] @ mean)
                for one, sel in zip(wide, chosen, strict=True)
            ]
            for place, name in enumerate(kind.inputs):
                parts = small[place * kind.parts : (place + 1) * kind.parts]
                _set_inputs_(narrow, name, parts, places)
            small_output = _Linear(inverse @ output.weight[:, out], inverse @ output.bias)
            _set_output_(narrow, kind.output, small_output, places)


def _largest_heads(
    wide: list[_Linear], output: _Linear, sizes: tuple[int, int], heads: int
) -> tuple[Tensor, Tensor]:
    """Rows of the queries and keys, and of the values, of the heads that are taken."""
    query, key, value = (one.weight for one in wide)
    # Both [heads, size]: how much a dimension says to the scores, and to the output.
    scores = (query.norm(dim=1) * key.norm(dim=1)).reshape(-1, sizes[0])
    says = (value.norm(dim=1) * output.weight.norm(dim=0)).reshape(-1, sizes[0])
    taken = says.square().sum(1).topk(min(heads, len(says))).indices.sort().values
    count = min(sizes)

    def rows(strength: Tensor) -> Tensor:
        inside: Tensor = strength[taken].topk(count, dim=1).indices.sort(dim=1).values
        found: Tensor = (taken[:, None] * sizes[0] + inside).flatten()
        return found

    return rows(scores), rows(says)


def _head_size(layer: nn.Module, family: Family) -> int:
    return int(getattr(layer.get_submodule(family.attention), family.head_size))


def _parts(layer: nn.Module, name: str, parts: int) -> list[_Linear]:
    module = linear_at(layer, name)
    weight = module.weight if output_dim(module) == 0 else module.weight.T
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias
    return [_Linear(*both) for both in zip(weight.chunk(parts), bias.chunk(parts), strict=True)]


def _set_inputs_(layer: nn.Module, name: str, parts: list[_Linear], places: Tensor) -> None:
    module = linear_at(layer, name)
    weight = module.weight if output_dim(module) == 0 else module.weight.T
    for target, source in zip(weight.chunk(len(parts)), parts, strict=True):
        target[places] = source.weight
    for target, source in zip(module.bias.chunk(len(parts)), parts, strict=True):
        target[places] = source.bias


def _set_output_(layer: nn.Module, name: str, source: _Linear, places: Tensor) -> None:
    module = linear_at(layer, name)
    weight = module.weight if output_dim(module) == 0 else module.weight.T
    weight.zero_()
    weight[:, places] = source.weight
    module.bias.copy_(source.bias)
