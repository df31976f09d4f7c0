"""Inputs that stand out are made smaller, and the weights that meet them larger.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", 2023, https://arxiv.org/abs/2211.10438. There the factors go into the norm in
front. In a BERT the output of a norm is also what is passed on beside the layer, where that would
be wrong; here the factors stand where the inputs are rounded, which is exact in every family.
"""

from torch import Tensor

_SMALLEST = 1e-5


def smoothing_factor(weight: Tensor, largest: Tensor, strength: float) -> Tensor:
    """What to multiply each input with, and to divide its weights by: [inputs].

    Args:
        weight: [outputs, inputs].
        largest: the largest absolute value of each input, [inputs].
        strength: 0 leaves the inputs alone, 1 makes them all as large.
    """
    reached = largest.clamp(min=_SMALLEST) ** strength
    return weight.abs().amax(0).clamp(min=_SMALLEST) ** (1 - strength) / reached
