"""What is trained."""

from lightning_compress.modules.distillation import DistillationModule
from lightning_compress.modules.fine_tuning import FineTuningModule, NonFiniteLossError

__all__ = ["DistillationModule", "FineTuningModule", "NonFiniteLossError"]
