"""The teacher is measured before it teaches."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from lightning_compress.distillation.outputs import Wanted
from lightning_compress.distillation.teachers import Batch, LiveTeacher
from lightning_compress.errors import InputError
from lightning_compress.evaluation.chance import chance_of
from lightning_compress.evaluation.metrics import (
    metrics_for,
    predictions_and_targets,
    primary_metric,
)
from lightning_compress.evaluation.task import problem_type_of, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def examine(teacher: LiveTeacher, batches: Iterable[Batch], trainer: L.Trainer) -> dict[str, float]:
    """The metrics of a teacher on validation batches, of all processes together.

    Raises:
        InputError: by the metric that counts it is no better than chance. In a dev run, and where
            a perfect teacher could have been lucky, that is not asked.
    """
    config: PreTrainedConfig = teacher.model.config
    task, problem_type = task_of(teacher.model), problem_type_of(teacher.model)
    metrics = metrics_for(task, problem_type, config.num_labels)
    classes = config.num_labels or 0
    counts = torch.zeros(1 + classes, device=teacher.model.device)
    metrics.to(counts.device)
    for batch in batches:
        logits, labels = teacher(batch, Wanted()).logits, batch["labels"]
        assert isinstance(logits, Tensor)
        metrics.update(*predictions_and_targets(task, problem_type, logits, labels))
        counts[0] += len(labels)
        if problem_type == "single_label_classification":
            counts[1:] += torch.bincount(labels, minlength=classes)
        elif problem_type == "multi_label_classification":
            counts[1:] += labels.sum(0)
    found = {name: float(value) for name, value in metrics.compute().items()}
    examples, *each = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    chance = chance_of(
        problem_type,
        examples=int(examples),
        label_counts={label: int(count) for label, count in enumerate(each)},
        vocabulary=config.vocab_size,
    )
    name, better = primary_metric(task, problem_type)
    learned = found[name] > chance if better == "max" else found[name] < chance
    few = better == "max" and chance >= 1  # or of one class only
    if not learned and not few and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # dynamic
        raise InputError(
            f"model.teacher is no better than chance: its {name} is {found[name]:.4g} on "
            f"{int(examples)} validation examples, where {chance:.4g} could be luck; fine-tune it "
            "on these data first"
        )
    return found
