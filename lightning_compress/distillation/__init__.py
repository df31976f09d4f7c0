"""Distillation: a student learns from the outputs of a teacher; one kind of loss a file."""

from lightning_compress.distillation.attention import AttentionMaps, Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses, TaskLoss
from lightning_compress.distillation.soft_targets import SoftTargets

__all__ = [
    "AttentionMaps",
    "Embeddings",
    "HiddenStates",
    "Losses",
    "Relations",
    "SoftTargets",
    "TaskLoss",
]
