"""Options that all modules share."""

from typing import Any, TypedDict

from lightning.pytorch.cli import OptimizerCallable

from lightning_compress.distillation.objective import Losses
from lightning_compress.models.sentence_embedding import Pooling
from lightning_compress.modules.class_weights import ClassWeights
from lightning_compress.modules.teacher_inputs import CacheUse
from lightning_compress.types import ProblemType


class FineTuningOptions(TypedDict, total=False):
    """Options of a ``FineTuningModule``, documented there."""

    pretrained: str | None
    config: dict[str, Any] | None
    task: str
    num_labels: int | None
    problem_type: ProblemType | None
    class_weights: ClassWeights | None
    resize_embeddings: bool
    pooling: Pooling | None
    optimizer: OptimizerCallable | None
    learning_rate: float
    weight_decay: float
    schedule: str
    schedule_options: dict[str, Any] | None
    warmup: float


class DistillationOptions(FineTuningOptions, total=False):
    """Options of a ``DistillationModule`` except ``teacher``, documented there."""

    losses: Losses
    every_nth_layer: int | None
    teacher_cache: CacheUse
    cache_dir: str
    top_k: int
