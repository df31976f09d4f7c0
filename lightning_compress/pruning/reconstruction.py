"""Reconstruction of a layer's output by the units that remain, before and after others are removed.

From the cheapest to the most accurate:

* :func:`absorb_means_`: the mean output of the removed units is added to the bias of their
  output projection.
* :func:`least_squares_refit_`: the outgoing weights of the remaining units are fitted to the output
  of all units, in closed form from the statistics of the projection's inputs.
* :func:`reconstruct_projections_`: after the removal, the output projections are fitted one after
  the other to those of the dense model, given the inputs in the smaller model.

Sources: the mean in the bias is that of An et al., "Fluctuation-based Adaptive Structured Pruning
for Large Language Models", 2024, https://arxiv.org/abs/2312.11983. The reconstruction is the mask
tuning of Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, which fits one factor per unit; here all outgoing weights are
fitted, in as many passes over the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration, in_one_piece, token_mask
from lightning_compress.models.hooks import Call, before_calls, captured
from lightning_compress.models.structure import (
    Units,
    inputs_of,
    linear_at,
    outputs_first,
    positions_of,
    units_of,
)
from lightning_compress.types import Batch


@dataclass(frozen=True)
class InputStatistics:
    """Moments of the N inputs of a projection over all tokens, in float64.

    Args:
        mean: [N].
        second_moment: [N, N], the means of the products of all pairs of inputs; or [N], the
            diagonal of that, the mean squares.
    """

    mean: Tensor
    second_moment: Tensor

    def variance(self) -> Tensor:
        """[N], at least 0."""
        second = self.second_moment
        squares = second if second.dim() == 1 else second.diagonal()
        return (squares - self.mean.square()).clamp(min=0)


@torch.no_grad()
def input_statistics(
    model: nn.Module, units: Sequence[Units], calibration: Calibration, *, pairs: bool = False
) -> dict[str, InputStatistics]:
    """Collect the moments of the inputs of the units' output projections, without padding.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples.
        pairs: whether ``second_moment`` is [N, N] instead of [N].

    Returns:
        By name of the projection (``Units.output``).
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, call: Call) -> None:
        values = call.inputs[0].reshape(*mask.shape, -1)[mask].double()
        products = values.T @ values if pairs else values.square().sum(0)
        counts[name] = counts.get(name, 0) + len(values)
        first[name] = first.get(name, 0) + values.sum(0)
        second[name] = second.get(name, 0) + products

    hooks = [(model.get_submodule(one.output), partial(add, one.output)) for one in units]
    with before_calls(hooks), in_one_piece(model):
        for batch in calibration.batches:
            mask = token_mask(batch, model)
            calibration.logits(batch)
    return {
        name: InputStatistics(first[name] / count, second[name] / count)
        for name, count in counts.items()
    }


@torch.no_grad()
def absorb_means_(
    model: nn.Module, units: Units, removed: Sequence[int], statistics: InputStatistics
) -> None:
    """Add the mean output of units to the bias of their projection, before they are removed.

    Does nothing where the projection has no bias.

    Args:
        model: a transformer of a known family.
        units: of one block.
        removed: the units that will be removed.
        statistics: of the inputs of the projection.
    """
    module = linear_at(model, units.output)
    if module.bias is None:
        return
    columns = positions_of(removed, inputs_of(module), 1, units.count).to(statistics.mean.device)
    mean_output = outputs_first(module)[:, columns].double() @ statistics.mean[columns]
    module.bias.add_(mean_output)


@torch.no_grad()
def least_squares_refit_(
    model: nn.Module,
    units: Units,
    removed: Sequence[int],
    statistics: InputStatistics,
    *,
    ridge: float = 1e-4,
) -> None:
    """Fit the outgoing weights of the kept units to the output of all units, before the removal.

    Least squares over the tokens in closed form. With the covariance C of the inputs and the mean
    d of its diagonal, the weights of the kept units grow by
    ``W[:, removed] C[removed, kept] (C[kept, kept] + ridge·d·I)⁻¹``, and the bias keeps the mean
    output. Without a bias C is the second moment. Needs several times as many tokens as inputs.

    Args:
        model: a transformer of a known family.
        units: of one block.
        removed: the units that will be removed.
        statistics: of the inputs of the projection, with all pairs.
        ridge: regularization relative to the inputs' variance; a larger one fits less noise.
    """
    module = linear_at(model, units.output)
    weight = outputs_first(module).double()
    kept = [unit for unit in range(units.count) if unit not in set(removed)]
    columns, lost = (
        positions_of(some, inputs_of(module), 1, units.count).to(weight.device)
        for some in (kept, removed)
    )
    covariance = statistics.second_moment
    if module.bias is not None:
        covariance = covariance - torch.outer(statistics.mean, statistics.mean)
    inner = covariance[columns][:, columns]
    inner = inner + ridge * inner.diagonal().mean() * torch.eye(len(columns), device=inner.device)
    change = torch.linalg.solve(inner, covariance[columns][:, lost] @ weight[:, lost].T).T
    fitted = weight[:, columns] + change
    if module.bias is not None:
        module.bias.add_(weight @ statistics.mean - fitted @ statistics.mean[columns])
    outputs_first(module)[:, columns] = fitted.to(module.weight.dtype)


@torch.no_grad()
def reconstruct_projections_(
    model: nn.Module,
    dense: nn.Module,
    calibration: Calibration,
    dense_logits: Callable[[Batch], Tensor],
    *,
    ridge: float = 1e-2,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Fit the output projections of a smaller model to those of the dense one, first to last.

    Each fit is the least-squares solution given the inputs in the smaller model after all earlier
    projections have been fitted, so it also compensates their errors. The solution is drawn to the
    current weights by ``ridge`` times the mean square of an input.

    Args:
        model: ``dense`` without some of its units; it has all of the layers.
        dense: the model before the removal.
        calibration: of ``model``.
        dense_logits: gives the logits of ``dense`` for a batch.
        ridge: regularization relative to the inputs; a larger one fits less noise.
        on_progress: called after each projection.
    """
    with in_one_piece(model, dense):
        for both in zip(units_of(model, "heads"), units_of(model, "neurons"), strict=True):
            for units in both:
                _reconstruct_(model, dense, units.output, calibration, dense_logits, ridge)
                on_progress()


def _reconstruct_(
    model: nn.Module,
    dense: nn.Module,
    name: str,
    calibration: Calibration,
    dense_logits: Callable[[Batch], Tensor],
    ridge: float,
) -> None:
    module = linear_at(model, name)
    products: Tensor | float = 0.0  # of inputs with inputs, a constant one among them
    targets: Tensor | float = 0.0  # of wanted outputs with inputs
    for batch in calibration.batches:
        mask = token_mask(batch, model)
        with captured([module, linear_at(dense, name)]) as (small, whole):
            calibration.logits(batch)
            dense_logits(batch)
        # One call each, except for layers that share one block.
        for call, dense_call in zip(small, whole, strict=True):
            inputs = call.inputs[0].reshape(*mask.shape, -1)[mask].double()
            outputs = dense_call.output.reshape(*mask.shape, -1)[mask].double()
            if module.bias is not None:
                inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
            products = products + inputs.T @ inputs
            targets = targets + outputs.T @ inputs
    assert isinstance(products, Tensor)
    before = outputs_first(module).double()
    if module.bias is not None:
        before = torch.cat([before, module.bias.double()[:, None]], dim=1)
    scale = products.diagonal()[: outputs_first(module).shape[1]].mean()
    inner = products + ridge * scale * torch.eye(len(products), device=products.device)
    fitted = before + torch.linalg.solve(inner, (targets - before @ products).T).T
    if module.bias is not None:
        module.bias.copy_(fitted[:, -1])
        fitted = fitted[:, :-1]
    outputs_first(module).copy_(fitted)
