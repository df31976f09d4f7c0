"""What an exported model is, once it is opened."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Program(Protocol):
    """An exported model, ready to run on the CPU or wherever its format runs."""

    def load(self, batch: Mapping[str, Tensor]) -> Any:
        """Bring a batch into the form that the runtime takes: ``input_ids`` [B, S] and the rest."""

    def __call__(self, loaded: Any) -> Tensor:
        """Run it: logits [B, C] or [B, S, V], on the CPU, when they are there."""
