"""Language modelling, causal and masked: a token is predicted at each position."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection

from lightning_compress.tasks.metrics import Perplexity, token_cross_entropy
from lightning_compress.tasks.task import Task
from lightning_compress.types import IGNORE_INDEX, Batch


class LanguageModeling(Task):
    """Tokens at positions. Logits are [B, S, V], labels [B, S] token ids aligned with the input."""

    primary_metric = "perplexity"
    higher_is_better = False
    per_token = True
    over_vocabulary = True

    def targets(self, labels: Tensor) -> Tensor:
        """Return the token to predict at each position, [B, S]; -100 where there is none."""
        return labels

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the tokens to predict."""
        return token_cross_entropy(logits, self.targets(labels))

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Perplexity over all tokens to predict."""
        return MetricCollection({"perplexity": Perplexity()})

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and, for each position, the token to predict [B, S]."""
        return logits, self.targets(labels)

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return the positions where a token is predicted, boolean [B, S]."""
        return self.targets(labels) != IGNORE_INDEX

    def predict(self, logits: Tensor) -> Batch:
        """Return ``tokens`` [B, S], those with the largest logits."""
        return {"tokens": logits.argmax(-1)}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return nine tenths of the perplexity of a uniform distribution over the vocabulary."""
        return 0.9 * vocabulary


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


class MaskedLM(LanguageModeling):
    """Predict masked tokens. Labels are -100 at every position that is not masked."""

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
