"""Pruning as functions of tensors: importance, selection, reconstruction, masks and schedules."""

from lightning_compress.pruning.magnitude import NM, magnitude_masks
from lightning_compress.pruning.schedule import Phases, PruningSchedule

__all__ = ["NM", "Phases", "PruningSchedule", "magnitude_masks"]
