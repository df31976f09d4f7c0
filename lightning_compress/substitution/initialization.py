"""Initial weights of a compact block, computed from the layers that it replaces.

Source: Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
2024, https://arxiv.org/abs/2401.15024: principal components of the activations as the basis of the
narrow layers, whose weights are those of the wide layers in that basis. Unlike SliceGPT, whole
heads and neurons are left out too, and norms keep their own parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.families import FAMILIES, Family, Projections
from lightning_compress.models.hooks import Call, before_calls
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.structure import linear_at, output_dim, outputs_of
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.substitution.captured import BlockIO, run_block

Initialization = Literal["random", "zero", "components", "least_squares", "sliced"]
"""Each includes the ones before it, from ``zero`` on.

``random``: all weights are random. ``zero``: the up-projection is zero, so that the block is the
identity at first. ``components``: the down-projection keeps the principal components of the input.
``least_squares``: the up-projection is fitted to what the predecessor adds to its input.
``sliced``: the narrow layers are the predecessor's in the basis of the principal components.
"""

_RIDGE = 1e-2  # relative to the mean of the Gram matrix's diagonal


@torch.no_grad()
def initialize_(
    switch: ReplacementSwitch,
    block_io: Sequence[BlockIO],
    initialization: Initialization,
    family: str,
) -> float | None:
    """Set the weights of a successor, in place.

    Args:
        switch: whose successor has random weights and an up-projection of zero.
        block_io: captured inputs and outputs of the predecessor.
        initialization: the method.
        family: of the model.

    Returns:
        Explained variance: the fraction of the input variance, in [0, 1], that the down-projection
        preserves; None where the method computes no principal components.
    """
    block = switch.successor
    if initialization == "zero":
        return None
    if initialization == "random":
        nn.init.normal_(block.up.weight, std=0.02)
        return None
    basis, mean, explained_variance = _principal_components(block_io, block.down.out_features)
    block.down.weight.copy_(torch.linalg.pinv(basis.double()))
    block.down.bias.copy_(-(block.down.weight @ mean))
    if initialization == "sliced":
        slice_layers_(switch, basis, mean, FAMILIES[family])
    if initialization != "components":
        _fit_up_projection_(block, block_io)
    return explained_variance


def _principal_components(block_io: Sequence[BlockIO], width: int) -> tuple[Tensor, Tensor, float]:
    """A basis [H, R], the mean [H], and the fraction of the variance that the basis explains.

    The basis is scaled so that the coordinates have a mean variance of 1.
    """
    tokens = torch.cat([io.hidden[io.mask] for io in block_io])
    mean, covariance = tokens.double().mean(0), tokens.double().T.cov(correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width]
    scale = values.mean().sqrt().clamp(min=1e-6)
    explained = float(values.sum() / covariance.trace().clamp(min=1e-30))
    return (vectors * scale).to(tokens.dtype), mean.to(tokens.dtype), explained


def _fit_up_projection_(block: CompactBlock, block_io: Sequence[BlockIO]) -> None:
    """Ridge regression of what the predecessor adds on the output of the narrow layers."""
    features, added = [], []
    for io in block_io:
        calls: list[Call] = []
        with before_calls([(block.up, calls.append)]):
            run_block(block, io)
        features.append(calls[0].hidden[io.mask].double())
        added.append((io.target - io.hidden)[io.mask].double())
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
    """Weight [outputs, inputs] and bias [outputs] of a linear layer or of a part of it."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Selection:
    """Which outputs of the wide layers of one kind the narrow layer gets.

    Args:
        rows: for each part of the input layers the selected output rows.
        columns: selected inputs of the output layer.
        places: indices in the narrow layer at which they are put.
    """

    rows: list[Tensor]
    columns: Tensor
    places: Tensor


def slice_layers_(switch: ReplacementSwitch, basis: Tensor, mean: Tensor, family: Family) -> None:
    """Set the narrow layers of a successor to slices of the predecessor's layers, in place.

    The heads and neurons with the largest weights are selected, and of each head its largest
    dimensions. Dimensions of a narrow layer that no wide one fills stay random and have output
    weights of zero.

    Args:
        switch: whose successor has a down-projection that is the inverse of ``basis``.
        basis: [H, R]; a wide vector is ``basis`` times a narrow vector, plus ``mean``.
        mean: [H].
        family: of the model.
    """
    block = switch.successor
    inverse = block.down.weight
    if family.norm_first:  # the norm before the layer subtracts the mean
        mean = torch.zeros_like(mean)
    for index, narrow in enumerate(block.layers):
        wide = switch.predecessor[index * len(switch.predecessor) // len(block.layers)]
        for kind in (family.heads, family.neurons):
            parts = [part for name in kind.inputs for part in _parts(wide, name, kind.parts)]
            output = _parts(wide, kind.output, 1)[0]
            if kind is family.heads:
                chosen = _select_heads_(wide, narrow, family, parts, output)
            else:
                chosen = _select_neurons(narrow, kind, parts, output)
            small = [
                _Linear(part.weight[rows] @ basis, part.bias[rows] + part.weight[rows] @ mean)
                for part, rows in zip(parts, chosen.rows, strict=True)
            ]
            for place, name in enumerate(kind.inputs):
                own = small[place * kind.parts : (place + 1) * kind.parts]
                _set_inputs_(narrow, name, own, chosen.places)
            small_output = _Linear(
                inverse @ output.weight[:, chosen.columns], inverse @ output.bias
            )
            _set_output_(narrow, kind.output, small_output, chosen.places)


def _select_neurons(
    narrow: nn.Module, kind: Projections, parts: list[_Linear], output: _Linear
) -> _Selection:
    """The neurons with the largest product of input and output norms."""
    count = outputs_of(linear_at(narrow, kind.inputs[0]))
    strength = parts[-1].weight.norm(dim=1) * output.weight.norm(dim=0)
    neurons = strength.topk(min(count, len(strength))).indices.sort().values
    return _Selection([neurons] * len(parts), neurons, torch.arange(len(neurons)))


def _select_heads_(
    wide: nn.Module, narrow: nn.Module, family: Family, parts: list[_Linear], output: _Linear
) -> _Selection:
    """The heads with the largest values; the queries in ``parts`` are rescaled in place.

    The rescaling keeps the attention scores where the head size, whose root they are divided by,
    changes.
    """
    kind, sizes = family.heads, (_head_size(wide, family), _head_size(narrow, family))
    rows = outputs_of(linear_at(narrow, kind.inputs[0])) // kind.parts
    between, columns = _largest_heads(parts, output, sizes, rows // sizes[1])
    heads = torch.arange(len(columns) // min(sizes)) * sizes[1]
    places = (heads[:, None] + torch.arange(min(sizes))).flatten()
    for random in vars(_parts(narrow, kind.inputs[0], kind.parts)[0]).values():
        random.zero_()  # random queries would add noise to the scores
    parts[0] = _Linear(*(x * (sizes[1] / sizes[0]) ** 0.5 for x in vars(parts[0]).values()))
    return _Selection([between, between, columns], columns, places)


def _largest_heads(
    parts: list[_Linear], output: _Linear, sizes: tuple[int, int], heads: int
) -> tuple[Tensor, Tensor]:
    """Rows of the queries and keys, and rows of the values, of the selected heads."""
    query, key, value = (part.weight for part in parts)
    # Both [heads, size]: contribution of each dimension to the scores, and to the output.
    scores = (query.norm(dim=1) * key.norm(dim=1)).reshape(-1, sizes[0])
    values = (value.norm(dim=1) * output.weight.norm(dim=0)).reshape(-1, sizes[0])
    selected = values.square().sum(1).topk(min(heads, len(values))).indices.sort().values
    count = min(sizes)

    def rows(strength: Tensor) -> Tensor:
        inside: Tensor = strength[selected].topk(count, dim=1).indices.sort(dim=1).values
        found: Tensor = (selected[:, None] * sizes[0] + inside).flatten()
        return found

    return rows(scores), rows(values)


def _head_size(layer: nn.Module, family: Family) -> int:
    return int(getattr(layer.get_submodule(family.attention), family.head_size))


def _parts(layer: nn.Module, name: str, parts: int) -> list[_Linear]:
    """A linear layer split into equal parts of its outputs, as views."""
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
