"""Statistics of what units say, over the tokens of a calibration set.

What remains takes over for what goes: means go into the bias, weights are fitted anew.

Let a smaller model say, projection by projection, what the dense one says.

The mask tuning of Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, fits one factor to each unit; here all outgoing weights are
fitted, which costs the same passes over the examples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Batch, Calibration, in_one_piece, token_mask
from lightning_compress.models.structure import (
    Units,
    inputs_of,
    linear_at,
    outputs_first,
    positions_of,
    units_of,
)


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


@torch.no_grad()
def match_projections_(
    model: nn.Module,
    dense: nn.Module,
    calibration: Calibration,
    dense_logits: Callable[[Batch], Tensor],
    *,
    ridge: float = 1e-2,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Fit the output projections of a smaller model to those of the dense one, first to last.

    Each is the least-squares solution, given what reaches it in the smaller model once all before
    it have been fitted, so that it makes up for their errors too. The fit is drawn towards the
    weights that there were, by ``ridge`` times the mean square of an input.

    Args:
        model: what became of ``dense`` after units were removed; its layers are all there.
        dense: the model that it came from.
        calibration: of ``model``.
        dense_logits: the same for ``dense``.
        ridge: keeps the fit from following noise.
        on_progress: called after each projection.
    """
    with in_one_piece(model, dense):
        for both in zip(units_of(model, "heads"), units_of(model, "neurons"), strict=True):
            for units in both:
                _match_(model, dense, units.output, calibration, dense_logits, ridge)
                on_progress()


def _match_(
    model: nn.Module,
    dense: nn.Module,
    name: str,
    calibration: Calibration,
    dense_logits: Callable[[Batch], Tensor],
    ridge: float,
) -> None:
    module = linear_at(model, name)
    products: Tensor | float = 0.0  # of inputs with inputs, a constant one among them
    targets: Tensor | float = 0.0  # of outputs wanted with inputs
    for batch in calibration.batches:
        mask = token_mask(batch)
        with _calls(module) as ours, _calls(linear_at(dense, name)) as theirs:
            calibration.logits(batch)
            dense_logits(batch)
        # One call, but for layers that are one block.
        for (reached, _), (_, wanted) in zip(ours, theirs, strict=True):
            inputs = reached.reshape(*mask.shape, -1)[mask].double()
            outputs = wanted.reshape(*mask.shape, -1)[mask].double()
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


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of a module's calls."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach(), output.detach()))

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
