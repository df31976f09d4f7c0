"""The task's metrics over a whole split, in one runtime and precision."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_compress.evaluation.runtimes.runtime import PreparedModel
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from lightning_compress.tasks import Task


def evaluate(
    prepared: PreparedModel,
    batches: Sequence[Batch],
    *,
    task: "Task",
    num_labels: int | None,
    advance: Callable[[], None],
) -> dict[str, float | None]:
    """Compute the metrics of a model over all batches.

    Args:
        prepared: the model in its runtime.
        batches: the split, with ``labels``.
        task: the model's task.
        num_labels: number of labels of a classifier.
        advance: called after every batch.

    Returns:
        The value of every metric; None where it is not finite.
    """
    metrics = task.metrics(num_labels)
    for metric in metrics.values():
        # Only one process measures: torchmetrics must not wait for the others.
        metric.distributed_available_fn = lambda: False
    for batch in batches:
        logits = prepared(prepared.load(batch))
        if not task.over_vocabulary:
            logits = logits.cpu()  # small; the logits of a language model stay on their device
        metrics = metrics.to(logits.device)
        labels = batch["labels"].to(logits.device)
        metrics.update(*task.predictions_and_targets(logits, labels))
        advance()
    values = {name: float(value) for name, value in metrics.compute().items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
