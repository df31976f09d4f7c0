"""Statistics of the inputs of linear layers, collected on calibration examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import in_one_piece, token_mask
from lightning_compress.models.forward import model_inputs
from lightning_compress.types import Batch

CALIBRATION_EXAMPLES = 512
"""Default number of calibration examples; scales hardly change with more."""

_SAMPLED_TOKENS = 2048


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of the N inputs of a linear layer over the tokens of the calibration examples.

    Args:
        max: largest value of each input, [N] float32.
        min: smallest value of each input, [N] float32.
        samples: all inputs of about 2048 tokens, evenly spread over the examples, [T, N] float32.
    """

    max: Tensor
    min: Tensor
    samples: Tensor

    def scaled(self, scale: Tensor) -> "ActivationStats":
        """The statistics of inputs that are multiplied by positive scales, [N]."""
        return ActivationStats(self.max * scale, self.min * scale, self.samples * scale)


@torch.no_grad()
def collect_activation_stats(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, ActivationStats]:
    """Run a model on calibration examples and collect statistics of linear layers' inputs.

    Args:
        model: in eval mode.
        names: of the linear layers.
        batches: calibration examples; padding tokens are left out.

    Returns:
        Statistics by name of the layer.

    Raises:
        InputError: a layer received no input, or an input is not finite.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    extremes: dict[str, tuple[Tensor, Tensor]] = {}
    tokens = sum(int(token_mask(batch).sum()) for batch in batches)
    device = next(model.parameters()).device
    mask: Tensor

    def collector(name: str):  # type: ignore[no-untyped-def]  # a forward pre-hook
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _token_rows(inputs[0].detach(), mask).float()
            high, low = rows.amax(0), rows.amin(0)
            if not (high - low).isfinite().all():
                raise InputError(
                    f"the inputs of {name} are not finite on the calibration examples: the "
                    "model's weights are damaged; load it again"
                )
            if name in extremes:
                high, low = high.maximum(extremes[name][0]), low.minimum(extremes[name][1])
            extremes[name] = high, low
            samples[name].append(rows[:: max(1, tokens // _SAMPLED_TOKENS)])

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(collector(name)) for name in names]
    try:
        with in_one_piece(model):
            for batch in batches:
                inputs = model_inputs(model, batch)
                mask = token_mask(inputs).to(device)
                model(**{name: value.to(device) for name, value in inputs.items()})
    finally:
        for handle in hooks:
            handle.remove()
    unused = [name for name in names if name not in extremes]
    if unused:
        raise InputError(f"{unused[0]} was not used by any calibration example")
    return {name: ActivationStats(*extremes[name], torch.cat(samples[name])) for name in names}


def _token_rows(inputs: Tensor, mask: Tensor) -> Tensor:
    """The inputs of all tokens but padding, [T, N]; poolers and classifiers get one per text."""
    if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
        return inputs[mask]
    return inputs.reshape(-1, inputs.shape[-1])
