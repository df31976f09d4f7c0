"""What remains takes over for what goes: means go into the bias, weights are fitted anew."""

from collections.abc import Sequence

import torch
from torch import nn

from lightning_compress.models.linear import inputs_of, linear_at
from lightning_compress.models.structure import Units
from lightning_compress.models.surgery import positions_of
from lightning_compress.pruning.input_statistics import InputStatistics
from lightning_compress.pruning.unit_weights import outputs_first


@torch.no_grad()
def fold_means_(model: nn.Module, units: Units, gone: Sequence[int], seen: InputStatistics) -> None:
    """Add what units say on average to the bias of their projection, before they go.

    Does nothing where the projection has no bias.

    Args:
        model: a transformer of a known family.
        units: of one block.
        gone: those that will be removed.
        seen: the inputs of the projection.
    """
    module = linear_at(model, units.output)
    if module.bias is None:
        return
    columns = positions_of(gone, inputs_of(module), 1, units.count).to(seen.mean.device)
    said = outputs_first(module)[:, columns].double() @ seen.mean[columns]
    module.bias.add_(said)


@torch.no_grad()
def refit_(
    model: nn.Module,
    units: Units,
    gone: Sequence[int],
    seen: InputStatistics,
    *,
    ridge: float = 1e-4,
) -> None:
    """Fit the outgoing weights of the units that stay so that they say what all said, before.

    Least squares over the tokens seen, closed form: with the covariance C of the inputs and the
    mean d of its diagonal, what goes is passed on to what stays by
    ``W[:, gone] C[gone, kept] (C[kept, kept] + ridge·d·I)⁻¹``, and the bias keeps the mean output.
    Without a bias C is the matrix of mean products. Needs several times as many tokens as inputs.

    Args:
        model: a transformer of a known family.
        units: of one block.
        gone: those that will be removed.
        seen: the inputs of the projection, with the products of all pairs.
        ridge: keeps the fit from following noise.
    """
    module = linear_at(model, units.output)
    weight = outputs_first(module).double()
    kept = [unit for unit in range(units.count) if unit not in set(gone)]
    columns, lost = (
        positions_of(some, inputs_of(module), 1, units.count).to(weight.device)
        for some in (kept, gone)
    )
    spread = seen.second
    if module.bias is not None:
        spread = spread - torch.outer(seen.mean, seen.mean)
    inner = spread[columns][:, columns]
    inner = inner + ridge * inner.diagonal().mean() * torch.eye(len(columns), device=inner.device)
    passed_on = torch.linalg.solve(inner, spread[columns][:, lost] @ weight[:, lost].T).T
    fitted = weight[:, columns] + passed_on
    if module.bias is not None:
        module.bias.add_(weight @ seen.mean - fitted @ seen.mean[columns])
    outputs_first(module)[:, columns] = fitted.to(module.weight.dtype)
