"""Progressive replacing: compact blocks take over from the old layers, batch by batch.

Source: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", 2020,
https://arxiv.org/abs/2002.02925.
"""

import random
from collections.abc import Sequence

from lightning_compress.models.switch import Choice


def probability_at(step: int, *, until: int, first: float) -> float:
    """With which probability a batch goes through a compact block.

    It grows in a straight line from ``first`` to one at step ``until``.
    """
    return 1.0 if step >= until else first + (1 - first) * step / until


def draw_(choices: Sequence[Choice], probability: float, key: str) -> None:
    """Decide for one batch of the training, group by group.

    The same for the same key on every process.
    """
    numbers = random.Random(key)
    for choice in choices:
        choice.drawn = numbers.random() < probability
