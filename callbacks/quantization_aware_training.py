"""Quantization-aware training: fake quantization from a given step to the end of ``fit``."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.forward import evaluating
from lightning_compress.quantization import (
    QuantizationConfig,
    check_preparation,
    coverage_of,
    prepare_,
)
from lightning_compress.quantization.fake_quantized import convert_, is_prepared, log_scales_of
from lightning_compress.types import Batch

from .calibration_batches import calibration_for, check_calibration
from .figures import describe_coverage, log_quantization
from .model_edit import (
    ModelEdit,
    follow_reshaping,
    rebuild_optimizers,
    require_reshapable,
    reshapable_model,
)
from .post_training import load_best, save_as_best
from .run import (
    callbacks_of,
    dense_models,
    digest_of,
    is_dev_run,
    require_agreement,
    run_length,
    steps_done,
)


class QuantizationAwareTraining(ModelEdit):
    """Train the Hugging Face model in any LightningModule with fake quantization.

    From ``start`` on, the forward pass is bit-identical to the quantized model's: what is
    validated is what is deployed. At the end of ``fit`` the best checkpoint's weights are quantized
    and saved as the best checkpoint. Pruning callbacks of the same run must have finished by
    ``start``. With a DistillationModule the teacher stays in floating point.

    Args:
        quantization: the scheme and its options, see
            :class:`~lightning_compress.quantization.QuantizationConfig`; a scheme with 8 or 4
            bits. ``int8-static`` learns its scales, starting from the observer's.
        start: fraction of the run after which fake quantization starts, in [0, 1).
        freeze: fraction of the run, at its end, in which learned scales are frozen, in [0, 1).
        calibration_examples: number of training examples to calibrate on, where the options need
            some.

    Raises:
        InputError: an option is out of range, or the model cannot be quantized; before the
            training starts.

    Source: see :mod:`lightning_compress.quantization.fake_quantized`.
    """

    def __init__(
        self,
        *,
        quantization: QuantizationConfig = QuantizationConfig(),  # noqa: B008  # it is immutable
        start: float = 0.0,
        freeze: float = 0.1,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, fraction in (("start", start), ("freeze", freeze)):
            if not 0 <= fraction < 1:
                raise InputError(f"{name} must be a fraction of the run in [0, 1), not {fraction}")
        if start + freeze >= 1:
            raise InputError(
                f"start and freeze must add up to less than 1, not to {start + freeze:g}: no steps "
                "would be left to learn scales in"
            )
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")
        self._start_step = 0
        self._freeze_step = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the model can be quantized, before anything is trained."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if not self.target_reached:
            check_preparation(model, self.hparams["quantization"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn fractions of the run into steps."""
        run, _ = run_length(trainer)
        self._start_step = round(self.hparams["start"] * run) if self.hparams["start"] else 0
        self._freeze_step = (1 - self.hparams["freeze"]) * run
        if not self.target_reached:
            self._require_final_shape(trainer, run)
        if self.hparams["quantization"].needs_calibration and not self.target_reached:
            check_calibration(trainer, reshapable_model(pl_module))
        self._prepare_if_due(trainer, pl_module)

    def _require_final_shape(self, trainer: L.Trainer, run: float) -> None:
        """Refuse other techniques that would change layers after they have been prepared."""
        for other in callbacks_of(trainer):
            last = other.last_edit(trainer) if isinstance(other, ModelEdit) else 0
            if last > self._start_step:
                least = math.ceil(100 * last / run) / 100
                raise InputError(
                    f"start: quantization-aware training begins at step {self._start_step}, and "
                    f"{type(other).__name__} changes the model until step {last} of {run:g}: set "
                    f"start (model.start of a QATModule) to at least {least}, or lengthen the "
                    "recovery"
                )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Start fake quantization when its step is reached."""
        self._prepare_if_due(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Freeze learned scales at the end of the run."""
        if trainer.global_step >= self._freeze_step:
            for parameter in log_scales_of(reshapable_model(pl_module)):
                parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the run ended before fake quantization started."""
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._start_step,
            state="the model is not quantized",
            remedy="lower start",
        )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Quantize, and save the result as the best checkpoint."""
        model = reshapable_model(pl_module)
        if is_dev_run(trainer) or not is_prepared(model):
            return
        load_best(trainer, pl_module)
        convert_(model)
        require_agreement(trainer, digest_of(manifest_of(model)), "what to quantize")
        coverage = coverage_of(model)
        log_quantization(trainer, coverage, {})
        rank_zero_info(describe_coverage(self.hparams["quantization"].scheme, coverage))
        save_as_best(trainer)

    def _prepare_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.target_reached or steps_done(trainer, pl_module) < self._start_step:
            return
        model = reshapable_model(pl_module)
        dense_models.save(trainer, pl_module)
        config: QuantizationConfig = self.hparams["quantization"]
        batches: Sequence[Batch] = ()
        if config.needs_calibration:
            batches = calibration_for(trainer, model, self.hparams["calibration_examples"]).batches
        with evaluating(model):
            prepare_(
                model,
                config,
                calibration_batches=batches,
                technique="quantization_aware_training",
            )
        model.train(pl_module.training)
        rebuild_optimizers(trainer)
        follow_reshaping(trainer)
        self._progress.reach_target(
            trainer, f"Fake quantization to {config.scheme} from step {self._start_step} on."
        )
