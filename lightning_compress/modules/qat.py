"""Quantization-aware training: a model that learns to be rounded, from labels or from a teacher."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from lightning_compress.modules.distillation import DistillationModule
from lightning_compress.quantization import Observer, SchemeName


class QATModule(DistillationModule):
    """Train a Hugging Face model while its layers round as they will once it is quantized.

    It is a FineTuningModule, or with a ``teacher`` a DistillationModule, that brings the callback
    QuantizationAwareTraining along; in a module of your own use that.

    Args:
        teacher: as of :class:`DistillationModule`; default: none, and the labels teach alone.
            ``dense``: the model as it was.
        scheme: see :class:`~lightning_compress.callbacks.QuantizationAwareTraining`, and so of the
            next ones.
        group: see there.
        observer: see there.
        smooth: see there.
        symmetric: see there.
        keep: see there.
        start: see there.
        freeze: see there.
        options: those of :class:`DistillationModule`.
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        scheme: SchemeName = "int8-dynamic",
        group: int = 32,
        observer: Observer = "mse",
        smooth: float | None = None,
        symmetric: bool = False,
        keep: Sequence[str] = (),
        start: float = 0.0,
        freeze: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(teacher=teacher, **options)
        self._rounding = {
            "scheme": scheme, "group": group, "observer": observer, "smooth": smooth,
            "symmetric": symmetric, "keep": keep, "start": start, "freeze": freeze,
        }  # fmt: skip

    @property
    def learns_without_labels(self) -> bool:
        """Whether there is a teacher, and the loss has a term besides that of the task."""
        return self._is_taught() and super().learns_without_labels

    def _is_taught(self) -> bool:
        return self.hparams["teacher"] is not None

    def configure_callbacks(self) -> list[L.Callback]:
        """What lets layers round, unless the Trainer has it already."""
        # Looked up when a Trainer asks: otherwise modules know nothing of callbacks.
        from lightning_compress.callbacks import QuantizationAwareTraining

        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]  # set dynamically
        if any(isinstance(callback, QuantizationAwareTraining) for callback in callbacks):
            return []
        return [QuantizationAwareTraining(**self._rounding)]
