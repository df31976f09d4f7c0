"""Let a smaller model say, projection by projection, what the dense one says.

The mask tuning of Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, fits one factor to each unit; here all outgoing weights are
fitted, which costs the same passes over the examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Batch, Calibration, in_one_piece, token_mask
from lightning_compress.models.linear import linear_at
from lightning_compress.models.structure import units_of
from lightning_compress.pruning.unit_weights import outputs_first


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
