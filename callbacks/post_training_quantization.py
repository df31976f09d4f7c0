"""Post-training quantization, once, at the end of ``fit``, on the best checkpoint's weights."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.finite import is_finite, not_finite
from lightning_compress.models.forward import device_of, evaluating, inputs_for, logits_by
from lightning_compress.models.manifest import QUANTIZATION_EDIT, edits_of
from lightning_compress.progress import progress_bar
from lightning_compress.quantization import (
    QuantizationConfig,
    check_quantization,
    coverage_of,
    quantize_,
    sensitivities,
)
from lightning_compress.quantization.quantize import in_precision
from lightning_compress.types import Batch

from .accuracy_guard import AccuracyGuard, validation_examples
from .calibration_batches import calibration_for, require_predictions
from .figures import describe_coverage, log_quantization
from .post_training import PostTraining
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OVERFLOW_EXAMPLES = 8
_SENSITIVITY_EXAMPLES = 128  # the model runs on them once per module


class PostTrainingQuantization(PostTraining):
    """Quantize a trained model without further training.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint monitors the
    run, and saves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all. Works on any LightningModule that holds a Hugging Face model, pruned or not.
    A model whose outputs would not be finite in 16 bits stays in floating point, with a warning.
    To compare several schemes in one run, list them in ``precisions`` of CompressionBenchmark.

    Args:
        quantization: the scheme and its options, see
            :class:`~lightning_compress.quantization.QuantizationConfig`.
        skip_most_sensitive: measure each module's sensitivity, the KL divergence of the
            predictions when it alone is quantized, and skip so many of the most sensitive linear
            layers; default: not measured. Sensitivities are drawn in the report.
        max_loss: largest loss of the primary metric on the validation split, in points (of a metric
            such as accuracy a hundredth, of a perplexity 1); default: not measured. If quantization
            costs more, the modules that cost most when they alone are quantized are given back to
            floating point, as few as needed (those of ``skip_most_sensitive`` before); if that is
            not enough, the model stays in floating point, with a warning. A 16-bit scheme is
            accepted or refused as a whole.
        calibration_examples: number of training examples to calibrate on, where the options need
            some.

    Raises:
        InputError: an option is out of range, the model cannot be quantized or is quantized
            already, or there are no labelled validation examples for ``max_loss``; before the
            training starts.
    """

    def __init__(
        self,
        *,
        quantization: QuantizationConfig = QuantizationConfig(),  # noqa: B008  # it is immutable
        skip_most_sensitive: int | None = None,
        max_loss: float | None = None,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if skip_most_sensitive is not None and skip_most_sensitive < 0:
            raise InputError(f"skip_most_sensitive must be at least 0, not {skip_most_sensitive}")
        if skip_most_sensitive is not None and quantization.precision.dtype is not None:
            raise InputError(
                f"skip_most_sensitive: {quantization.scheme} casts the whole model; choose a "
                "scheme with 8 or 4 bits, or leave it out"
            )
        if max_loss is not None and not 0 <= max_loss < math.inf:
            raise InputError(
                f"max_loss must be a number of points from 0 up, not {max_loss}; leave it out for "
                "no limit"
            )
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")

    @property
    def _needs_calibration(self) -> bool:
        sensitivities = self.hparams["skip_most_sensitive"] is not None
        return sensitivities or self.hparams["quantization"].needs_calibration

    def _check(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        check_quantization(model, self.hparams["quantization"])
        if self.hparams["skip_most_sensitive"] is not None:
            require_predictions(model, "skip_most_sensitive", "leave it out")
        if self.hparams["max_loss"] is not None:
            validation_examples(trainer, model)

    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str | None:
        config: QuantizationConfig = self.hparams["quantization"]
        batches: Sequence[Batch] = ()
        overflow = None if config.precision.dtype is None else _overflow(trainer, model, config)
        if overflow is not None:
            rank_zero_warn(f"quantization: {overflow}. The model stays in floating point")
            return None
        if config.needs_calibration:
            batches = calibration_for(trainer, model, self.hparams["calibration_examples"]).batches
        divergences: dict[str, float] = {}
        reasons: dict[str, str] = {}
        if self.hparams["skip_most_sensitive"] is not None:
            divergences = self._sensitivities(trainer, model)
            # Embeddings stay quantized: they are most of a small model's bytes.
            linear = [
                name
                for name in divergences
                if not isinstance(model.get_submodule(name), nn.Embedding)
            ]
            most = linear[: self.hparams["skip_most_sensitive"]]
            reasons |= dict.fromkeys(most, "most sensitive (skip_most_sensitive)")
            config = dataclasses.replace(config, skip_modules=[*config.skip_modules, *most])
        guard = None
        if self.hparams["max_loss"] is not None:
            guard = AccuracyGuard(trainer, model, self.hparams["max_loss"])
            given_back = guard.choose(config, batches)
            if given_back is None:
                rank_zero_warn(guard.refusal(config))
                return None
            reasons |= dict.fromkeys(given_back, "given back by the accuracy guard (max_loss)")
            config = dataclasses.replace(config, skip_modules=[*config.skip_modules, *given_back])
        quantize_(
            model, config, calibration_batches=batches, technique="post_training_quantization"
        )
        skipped = edits_of(model, QUANTIZATION_EDIT)[0].get("skipped", {})
        skipped.update((name, reasons[name]) for name in skipped if name in reasons)
        notes = []
        if guard is not None:
            notes = [guard.record_()]
            divergences = divergences or guard.divergences
        coverage = coverage_of(model)
        log_quantization(trainer, coverage, divergences)
        require_agreement(trainer, digest_of(manifest_of(model)), "what to quantize")
        return "\n".join([describe_coverage(config.scheme, coverage), *notes])

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


def _overflow(
    trainer: L.Trainer, model: "PreTrainedModel", config: QuantizationConfig
) -> str | None:
    """Why a model cannot be cast: values that are not finite; None if they all are."""
    try:
        calibration = calibration_for(trainer, model, _OVERFLOW_EXAMPLES)
    except InputError:
        return None  # these training batches are not the model's own
    batch = calibration.batches[0]
    if not is_finite(calibration.logits(batch), batch):
        return None  # casting is not the reason
    try:
        made = in_precision(model, config.scheme, str(device_of(model)), ())
    except InputError as error:
        return str(error)
    with evaluating(made):
        logits = logits_by(made, made)(**inputs_for(made, batch))
    return None if is_finite(logits, batch) else not_finite(made, batch, config.scheme)
