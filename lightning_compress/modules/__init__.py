"""What is trained."""

from lightning_compress.errors import NonFiniteLossError
from lightning_compress.modules.distillation import DistillationModule
from lightning_compress.modules.fine_tuning import FineTuningModule
from lightning_compress.modules.qat import QATModule

__all__ = ["DistillationModule", "FineTuningModule", "NonFiniteLossError", "QATModule"]
