"""A model to measure: whether the examples fit it, and its properties in every runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import Example
from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.evaluation.report.report import MASKS_ONLY, Row, Variant
from lightning_compress.evaluation.runtimes.runtime import Runtime, precision_caveat
from lightning_compress.models import modeling_kernels
from lightning_compress.models.forward import known_tokens, most_tokens
from lightning_compress.models.manifest import MASK_EDIT, manifest_of
from lightning_compress.quantization.accuracy_guard import ACCURACY_GUARD, describe_guard
from lightning_compress.quantization.modules import is_in_full_range
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_compress.tasks import Task


_FULL_RANGE = (
    "weights in full range: PyTorch multiplies them in float32 on this CPU, which saves no time, "
    "and OpenVINO's sums can overflow; quantize with full_range: false"
)


@dataclass(frozen=True)
class ModelUnderTest:
    """A model with its task, its size and its edits."""

    variant: Variant
    model: "PreTrainedModel"
    task: "Task"
    metrics: list[str]
    techniques: list[str]
    notes: list[str]
    parameters: int
    nonzero_parameters: int
    macs: int

    def row(self, runtime: Runtime, device: str, precision: str) -> Row:
        """A row of the report, not measured yet."""
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
            notes=list(self.notes),
            caveat=precision_caveat(precision, device, fused=runtime.fused),
        )


def model_under_test(variant: Variant, model: "PreTrainedModel", example: Batch) -> ModelUnderTest:
    """Count a model's parameters and MACs, and read its task and its edits.

    Args:
        variant: its part in the comparison.
        model: a Hugging Face model.
        example: a batch of one example, for which MACs are counted.
    """
    from lightning_compress.tasks import task_of  # imports torchmetrics, which is slow
    from lightning_compress.tasks.labels import metrics_of

    edits = manifest_of(model)
    masks_only = bool(edits) and all(edit["edit"] == MASK_EDIT for edit in edits)
    in_float32 = is_in_full_range(model) and modeling_kernels.CPU_KERNEL == "fbgemm"
    parameters, nonzero = count_parameters(model)
    task = task_of(model)
    return ModelUnderTest(
        variant=variant,
        model=model,
        task=task,
        metrics=sorted(map(str, metrics_of(model)), key=lambda one: one != task.primary_metric),
        # The technique that made an edit, where it is recorded.
        techniques=list(dict.fromkeys(str(e.get("technique", e["edit"])) for e in edits)),
        notes=[
            *([MASKS_ONLY] if masks_only else []),
            *([_FULL_RANGE] if in_float32 else []),
            *(describe_guard(edit[ACCURACY_GUARD]) for edit in edits if ACCURACY_GUARD in edit),
        ],
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(model, example),
    )


def check_labels(models: "Mapping[Variant, PreTrainedModel]") -> None:
    """Check that all models mean the same by their outputs: they are measured on one set of labels.

    Raises:
        InputError: their labels are others, or in another order.
    """
    from lightning_compress.tasks.labels import labels_of, require_same_names

    (variant, first), *others = models.items()
    known = labels_of(first)
    for name, model in others:
        found = labels_of(model)
        if found.num_labels != known.num_labels:
            raise InputError(
                f"the {name} model has {found.num_labels} labels and the {variant} model "
                f"{known.num_labels}: compare models of one task"
            )
        require_same_names(found, f"the {name} model", known, f"the {variant} model")


def check_examples(
    name: str, model: "PreTrainedModel", examples: Sequence[Example], *, split: str = "test"
) -> None:
    """Check the examples that a model is to be measured on.

    Args:
        name: the model's name in error messages.
        model: any Hugging Face model.
        examples: the whole split.
        split: its name in error messages.

    Raises:
        InputError: a token id, a length or a label exceeds the model's.
    """
    from lightning_compress.tasks import task_of  # imports torchmetrics, which is slow

    known = known_tokens(model)
    read = () if known is None else [example.tokens["input_ids"] for example in examples]
    token = max((int(ids.max()) for ids in read), default=0)
    if known is not None and token >= known:
        raise InputError(
            f"the {split} split holds token {token} and the {name} model has {known}: set "
            "data.tokenizer to the one that the model was trained with"
        )
    longest, limit = max(len(example) for example in examples), most_tokens(model)
    if limit is not None and longest > limit:
        raise InputError(
            f"the {split} split holds {longest} tokens in one example and the {name} model reads "
            f"at most {limit}: lower data.max_length"
        )
    labels = [example.labels for example in examples if example.labels is not None]
    task = task_of(model)
    from_data = not (task.over_vocabulary or task.over_positions)
    if labels and task.distribution == "categorical" and from_data:
        largest, known = max(int(label.max()) for label in labels), model.config.num_labels
        if known is not None and largest >= known:
            raise InputError(
                f"the {split} split holds label {largest}, counted from 0, and the {name} model "
                f"knows {known} labels: take data with the model's labels, or another model"
            )
