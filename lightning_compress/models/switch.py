"""The switch between encoder layers and the compact block that replaces them.

"Predecessor" and "successor" are the terms of Xu et al., "BERT-of-Theseus: Compressing BERT by
Progressive Module Replacing", 2020, https://arxiv.org/abs/2002.02925.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_compress.models.modeling_compressed import CompactBlock


class ReplacementSwitch(nn.Module):
    """Holds a group of layers and its replacement, and runs one of the two.

    Args:
        predecessor: the layers to be replaced; they are frozen.
        successor: the block that replaces them.

    The successor runs, unless :meth:`routed` excludes it or, in training mode, :meth:`sample` has
    drawn the predecessor.
    """

    def __init__(self, predecessor: nn.ModuleList, successor: CompactBlock) -> None:
        super().__init__()
        self.predecessor = predecessor.requires_grad_(False)
        self.successor = successor
        self._use_successor = True
        self._sampled = True

    @property
    def sampled(self) -> bool:
        """Whether :meth:`sample` has drawn the successor for the next training batch."""
        return self._sampled

    @property
    def runs_successor(self) -> bool:
        """Whether the next forward pass runs the successor."""
        return self._use_successor and (self._sampled or not self.training)

    def sample(self, probability: float, numbers: random.Random) -> None:
        """Draw which of the two runs on the next training batch.

        Args:
            probability: of the successor, in [0, 1].
            numbers: the generator to draw from.
        """
        self._sampled = numbers.random() < probability

    @contextmanager
    def routed(self, *, use_successor: bool) -> Iterator[None]:
        """Allow or exclude the successor within the context; restores the routing afterwards."""
        before, self._use_successor = self._use_successor, use_successor
        try:
            yield
        finally:
            self._use_successor = before

    def train_successor(self, mode: bool) -> None:
        """Set the mode of the switch and its successor; the predecessor keeps its own."""
        self.training = mode
        self.successor.train(mode)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """[B, S, H] to [B, S, H]; the other arguments are those of the replaced layers."""
        if self.runs_successor:
            output: Tensor = self.successor(hidden_states, *args, **kwargs)
            return output
        for layer in self.predecessor:
            hidden_states = layer(hidden_states, *args, **kwargs)
        return hidden_states
