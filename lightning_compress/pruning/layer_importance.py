"""Importance of whole layers by how much they turn what passes through them.

Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
2024, https://arxiv.org/abs/2403.03853.

Importance of whole layers by what the model says without each of them.

Which layers go, chosen one after the other.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.calibration import Calibration, divergence_from, token_mask
from lightning_compress.models.layers import hidden_in, skipped
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


@torch.no_grad()
def divergence_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """How far the outputs move when one more layer is skipped.

    The Kullback-Leibler divergence from the whole model's predictions, in nats; the mean squared
    difference where the model predicts a single number.

    Args:
        model: a transformer of a known family.
        calibration: the examples; their labels are not used.
        without: layers that are skipped already. Their score is infinite.

    Returns:
        [L] float64.
    """
    layers = len(structure_of(model).layers)
    scores = torch.full((layers,), torch.inf, dtype=torch.float64)
    whole = [calibration.logits(batch) for batch in calibration.batches]
    for layer in range(layers):
        if layer in without:
            continue
        with skipped(model, [*without, layer]):
            scores[layer] = divergence_from(whole, calibration)
    return scores


LayerScore = Literal["divergence", "influence", "last", "random"]


def last_scores(model: nn.Module, calibration: Calibration, without: Sequence[int] = ()) -> Tensor:
    """The plain baseline: the later a layer, the sooner it goes."""
    scores = -torch.arange(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


def random_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """What any other score has to beat: numbers drawn from torch's generator."""
    scores = torch.rand(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


_SCORES: dict[LayerScore, Callable[[nn.Module, Calibration, Sequence[int]], Tensor]] = {
    "divergence": divergence_scores,
    "influence": influence_scores,
    "last": last_scores,
    "random": random_scores,
}


def choose_layers(
    model: nn.Module, calibration: Calibration, count: int, score: LayerScore
) -> tuple[list[int], list[Tensor]]:
    """Choose the least important layer, then the next one given that it is gone, and so on.

    Args:
        model: a transformer of a known family.
        calibration: the examples.
        count: how many layers to choose, fewer than there are.
        score: by what.

    Returns:
        The layers in the order in which they were chosen, and the scores [L] before each choice.
    """
    chosen: list[int] = []
    rounds: list[Tensor] = []
    for _ in range(count):
        rounds.append(_SCORES[score](model, calibration, chosen))
        chosen.append(int(rounds[-1].argmin()))
    return chosen, rounds
