"""Quantization-aware training from labels or from a teacher, as one module."""

from typing import Any

import lightning as L

from lightning_compress.modules.distillation import DistillationModule
from lightning_compress.modules.options import DistillationOptions
from lightning_compress.quantization import QuantizationConfig
from lightning_compress.types import KeywordsOf


class QATModule(DistillationModule):
    """Fine-tune or distil a Hugging Face model with fake quantization.

    A FineTuningModule, or with a ``teacher`` a DistillationModule, that adds the callback
    QuantizationAwareTraining to the Trainer unless the Trainer has one already; with a
    LightningModule of your own use the callback itself.

    Args:
        teacher: see :class:`DistillationModule`; ``dense``: the model before this run quantizes
            it. Default: none, the loss is the task's alone.
        quantization: see :class:`~lightning_compress.quantization.QuantizationConfig`.
        start: see :class:`~lightning_compress.callbacks.QuantizationAwareTraining`.
        freeze: see :class:`~lightning_compress.callbacks.QuantizationAwareTraining`.
        options: those of :class:`DistillationModule`.
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        quantization: QuantizationConfig = QuantizationConfig(),  # noqa: B008  # it is immutable
        start: float = 0.0,
        freeze: float = 0.1,
        **options: KeywordsOf[DistillationOptions],
    ) -> None:
        super().__init__(teacher=teacher, **options)

    @property
    def learns_without_labels(self) -> bool:
        """Whether there is a teacher, and the loss has a term besides that of the task."""
        return self._is_taught() and super().learns_without_labels

    def _is_taught(self) -> bool:
        return self.hparams["teacher"] is not None

    def configure_callbacks(self) -> list[L.Callback]:
        """The callback, unless the Trainer has one."""
        # The one import upwards: Lightning's hook by which a module brings a callback along. It
        # runs when a Trainer asks, so that importing modules imports no callbacks.
        from lightning_compress.callbacks import QuantizationAwareTraining

        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]  # set dynamically
        if any(isinstance(callback, QuantizationAwareTraining) for callback in callbacks):
            return []
        options = {name: self.hparams[name] for name in ("quantization", "start", "freeze")}
        return [QuantizationAwareTraining(**options)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the options of quantization out: the model's state has what is needed."""
        super().on_save_checkpoint(checkpoint)
        del checkpoint["hyper_parameters"]["quantization"]
