"""Regression: one number, or several, for each text."""

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef

from lightning_compress.tasks.metrics import labelled_loss
from lightning_compress.tasks.task import Task
from lightning_compress.types import Batch


class Regression(Task):
    """Numbers per example. Logits are [B, 1] for labels [B], or [B, C] for labels [B, C]."""

    name = "sequence-classification"
    problem_type = "regression"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "spearman"
    distribution = "continuous"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error over the labelled examples."""
        labelled = self.target_mask(labels)
        return labelled_loss(_squared_error, logits, labels.float(), labelled)

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Pearson's and Spearman's correlation and the mean squared error."""
        with warnings.catch_warnings():
            # torchmetrics warns on every construction that the metric keeps all predictions.
            warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef`")
            return MetricCollection(
                {
                    "pearson": PearsonCorrCoef(),
                    "spearman": SpearmanCorrCoef(),
                    "mse": MeanSquaredError(),
                }
            )

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers shaped like the labels, twice."""
        return logits.float().reshape(labels.shape), labels.float()

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which examples have a label, boolean [B]: those that are not NaN throughout."""
        missing = labels.isnan()
        return ~(missing.all(-1) if missing.dim() > 1 else missing)

    def decisions(self, logits: Tensor) -> None:
        """Return None: predictions are numbers."""

    def predict(self, logits: Tensor) -> Batch:
        """Return ``logits`` [B, C], the predicted numbers."""
        return {"logits": logits}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return two standard errors of a correlation of zero."""
        return float(2 / max(1, examples - 1) ** 0.5)


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.mse_loss(logits.reshape(labels.shape), labels)
