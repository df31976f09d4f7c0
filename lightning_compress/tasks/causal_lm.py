"""Causal language modelling: the next token is predicted at each position."""

from torch import Tensor
from torch.nn import functional

from lightning_compress.tasks.language_modeling import LanguageModeling
from lightning_compress.types import IGNORE_INDEX


class CausalLM(LanguageModeling):
    """Predict the next token. Labels are the input tokens; the shift happens here."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"

    def targets(self, labels: Tensor) -> Tensor:
        """Return the token after each position; the last position has none."""
        return next_token_labels(labels)


def next_token_labels(labels: Tensor) -> Tensor:
    """Shift labels [B, S] one place to the left, so that position t holds the token after t.

    The last position gets -100. Labels are shifted and not logits, which would be copied.
    """
    return functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
