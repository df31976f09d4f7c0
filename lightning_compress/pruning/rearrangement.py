"""Swap units that go for units that stay, where two that go together cost less than each alone.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, section 4.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rearranged(gradients: Tensor, gone: Sequence[int]) -> list[int]:
    """Choose as many units of one layer to lose as little as possible together.

    The loss rises by half of the mean over the examples of the squared sum of the gradients of the
    units that go: the Fisher information with its off-diagonal part, so that units that do the same
    thing do not go together and units that make up for each other do. Swaps the best pair
    until no swap helps.

    Args:
        gradients: [N, U], of each example's loss by the gates of the units.
        gone: where to start from.

    Returns:
        As many units as ``gone``, ascending.
    """
    fisher = gradients.double().T @ gradients.double() / len(gradients)
    diagonal = fisher.diagonal()
    out = torch.zeros(len(fisher), dtype=torch.bool, device=fisher.device)
    out[list(gone)] = True
    pull = fisher[:, out].sum(1)  # F · 1(gone)
    for _ in range(len(fisher)):
        going, staying = out.nonzero().flatten(), (~out).nonzero().flatten()
        if not len(going) or not len(staying):
            break
        back = diagonal[going] - 2 * pull[going]
        away = diagonal[staying] + 2 * pull[staying]
        change = back[:, None] + away - 2 * fisher[going][:, staying]
        best = int(change.argmin())
        first, second = going[best // len(staying)], staying[best % len(staying)]
        if change.flatten()[best] >= -1e-12 * diagonal.sum():
            break
        out[first], out[second] = False, True
        pull += fisher[:, second] - fisher[:, first]
    return [int(unit) for unit in out.nonzero().flatten()]
