"""Progressive replacement: successors replace predecessors at random, with growing probability.

Source: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", 2020,
https://arxiv.org/abs/2002.02925, with its linear curriculum. The decision is made for a batch and
a group, not for an example.
"""

import random
from collections.abc import Sequence

from lightning_compress.models.switch import ReplacementSwitch


def replacement_probability(step: int, *, final_step: int, initial: float) -> float:
    """Probability in [0, 1] that a successor runs at an optimizer step.

    Args:
        step: optimizer steps so far.
        final_step: the step from which the probability is 1.
        initial: the probability at step 0, from which it grows linearly.
    """
    return 1.0 if step >= final_step else initial + (1 - initial) * step / final_step


def sample_switches_(switches: Sequence[ReplacementSwitch], probability: float, key: str) -> None:
    """Draw for every switch whether its successor runs on the next training batch.

    Args:
        switches: of the model, first to last.
        probability: of the successor, in [0, 1].
        key: seeds the draw; equal keys give equal draws, on every process.
    """
    numbers = random.Random(key)
    for switch in switches:
        switch.sample(probability, numbers)
