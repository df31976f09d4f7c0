"""Post-training quantization, once, at the end of ``fit``, on the best checkpoint's weights."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.progress import progress_bar
from lightning_compress.quantization import (
    QuantizationConfig,
    check_quantization,
    quantize_,
    sensitivities,
)
from lightning_compress.types import Batch

from .calibration_batches import calibration_for
from .figures import describe_coverage, log_quantization
from .post_training import PostTraining
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SENSITIVITY_EXAMPLES = 128  # the model runs on them once per module


class PostTrainingQuantization(PostTraining):
    """Quantize a trained model without further training.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint monitors the
    run, and saves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all. Works on any LightningModule that holds a Hugging Face model, pruned or not.
    To compare several schemes in one run, list them in ``precisions`` of CompressionBenchmark.

    Args:
        quantization: the scheme and its options, see
            :class:`~lightning_compress.quantization.QuantizationConfig`.
        skip_most_sensitive: measure each module's sensitivity, the KL divergence of the
            predictions when it alone is quantized, and skip so many of the most sensitive linear
            layers; default: not measured. Sensitivities are drawn in the report.
        calibration_examples: number of training examples to calibrate on, where the options need
            some.

    Raises:
        InputError: an option is out of range, or the model cannot be quantized or is quantized
            already; before the training starts.
    """

    def __init__(
        self,
        *,
        quantization: QuantizationConfig = QuantizationConfig(),  # noqa: B008  # it is immutable
        skip_most_sensitive: int | None = None,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if skip_most_sensitive is not None and skip_most_sensitive < 0:
            raise InputError(f"skip_most_sensitive must be at least 0, not {skip_most_sensitive}")
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")

    def _check(self, model: "PreTrainedModel") -> None:
        check_quantization(model, self.hparams["quantization"])

    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str:
        config: QuantizationConfig = self.hparams["quantization"]
        batches: Sequence[Batch] = ()
        if config.needs_calibration:
            batches = calibration_for(trainer, model, self.hparams["calibration_examples"]).batches
        divergences: dict[str, float] = {}
        if self.hparams["skip_most_sensitive"] is not None:
            divergences = self._sensitivities(trainer, model)
            # Embeddings stay quantized: they are most of a small model's bytes.
            linear = [
                name
                for name in divergences
                if not isinstance(model.get_submodule(name), nn.Embedding)
            ]
            skipped = [*config.skip_modules, *linear[: self.hparams["skip_most_sensitive"]]]
            config = dataclasses.replace(config, skip_modules=skipped)
        coverage = quantize_(
            model, config, calibration_batches=batches, technique="post_training_quantization"
        )
        log_quantization(trainer, coverage, divergences)
        require_agreement(trainer, digest_of(manifest_of(model)), "what to quantize")
        return describe_coverage(config.scheme, coverage)

    def _sensitivities(self, trainer: L.Trainer, model: "PreTrainedModel") -> dict[str, float]:
        examples = min(self.hparams["calibration_examples"], _SENSITIVITY_EXAMPLES)
        calibration = calibration_for(trainer, model, examples)
        modules = sum(parameter.dim() == 2 for parameter in model.parameters())
        with progress_bar(modules, shown=trainer.progress_bar_callback is not None) as advance:
            return sensitivities(
                model,
                self.hparams["quantization"],
                calibration,
                on_progress=lambda name: advance(f"quantizing {name} alone", 1),
            )
