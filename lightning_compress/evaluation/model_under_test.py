"""A model to measure, and its properties that do not depend on the runtime."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.evaluation.precision_caveat import precision_caveat
from lightning_compress.evaluation.report.row import MASKS_ONLY, Row, Variant
from lightning_compress.evaluation.runtimes.runtime import Runtime
from lightning_compress.models.manifest import MASK_EDIT, manifest_of
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_compress.tasks import Task


@dataclass(frozen=True)
class ModelUnderTest:
    """A model with its task, its size and its edits."""

    variant: Variant
    model: "PreTrainedModel"
    task: "Task"
    num_labels: int | None
    metrics: list[str]
    techniques: list[str]
    notes: list[str]
    parameters: int
    nonzero_parameters: int
    macs: int

    def row(self, runtime: Runtime, device: str, precision: str) -> Row:
        """A row of the report, not measured yet."""
        caveat = precision_caveat(precision, device, fused=runtime.fused)
        return Row(
            model=self.variant,
            techniques=self.techniques,
            runtime=runtime.name,
            device=device,
            precision=precision,
            metrics=dict.fromkeys(self.metrics),
            parameters=self.parameters,
            nonzero_parameters=self.nonzero_parameters,
            macs=self.macs,
            notes=[*self.notes, *([caveat] if caveat else [])],
        )


def model_under_test(variant: Variant, model: "PreTrainedModel", example: Batch) -> ModelUnderTest:
    """Count a model's parameters and MACs, and read its task and its edits.

    Args:
        variant: its part in the comparison.
        model: a Hugging Face model.
        example: a batch of one example, for which MACs are counted.
    """
    from lightning_compress.tasks import task_of  # imports torchmetrics, which is slow

    edits = manifest_of(model)
    masks_only = bool(edits) and all(edit["edit"] == MASK_EDIT for edit in edits)
    parameters, nonzero = count_parameters(model)
    task, num_labels = task_of(model), model.config.num_labels
    return ModelUnderTest(
        variant=variant,
        model=model,
        task=task,
        num_labels=num_labels,
        metrics=sorted(
            map(str, task.metrics(num_labels)), key=lambda one: one != task.primary_metric
        ),
        # The technique that made an edit, where it is recorded.
        techniques=list(dict.fromkeys(str(e.get("technique", e["edit"])) for e in edits)),
        notes=[MASKS_ONLY] if masks_only else [],
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(model, example),
    )
