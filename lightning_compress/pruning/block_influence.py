"""Importance of whole layers by how much they turn what passes through them.

Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
2024, https://arxiv.org/abs/2403.03853.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.models.skipping import hidden_in, skipped
from lightning_compress.models.structure import structure_of


@torch.no_grad()
def influence_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """One minus the cosine between what goes into a layer and what comes out, mean over tokens.

    Args:
        model: a transformer of a known family, whose layers are blocks of their own.
        calibration: the examples; their labels are not used.
        without: layers that are skipped already. Their score is infinite.

    Returns:
        [L] float64.
    """
    blocks = structure_of(model).layers
    total = torch.zeros(len(blocks), dtype=torch.float64)
    tokens = 0
    mask: Tensor

    def watch(layer: int):  # type: ignore[no-untyped-def]  # a hook, for torch alone
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any
        ) -> None:
            after = output[0] if isinstance(output, tuple) else output
            before = hidden_in(inputs, keywords)
            cosine = functional.cosine_similarity(before.double(), after.double(), dim=-1)
            total[layer] += float((1 - cosine)[mask].sum())

        return hook

    hooks = [
        model.get_submodule(block).register_forward_hook(watch(layer), with_kwargs=True)
        for layer, block in enumerate(blocks)
    ]
    try:
        with skipped(model, without):
            for batch in calibration.batches:
                mask = token_mask(batch)
                tokens += int(mask.sum())
                calibration.logits(batch)
    finally:
        for handle in hooks:
            handle.remove()
    scores = total / tokens
    scores[list(without)] = torch.inf
    return scores
