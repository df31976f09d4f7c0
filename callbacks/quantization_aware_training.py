"""When layers round while they learn: from a step on, to the end of the fit."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.forward import evaluating
from lightning_compress.quantization import (
    Observer,
    Options,
    SchemeName,
    check_preparation,
    coverage_of,
    needs_examples,
    prepare_,
)
from lightning_compress.quantization.fake_quantized import convert_, is_prepared, stretches_of
from lightning_compress.types import Batch

from .best_checkpoint import load_best, save_as_best
from .calibration_batches import calibration_for
from .dense_model import dense_models
from .figures import log_quantization, said_of
from .model_edit import (
    ModelEdit,
    follow_reshaping,
    rebuild_optimizers,
    require_reshapable,
    reshapable_model,
)
from .run import digest_of, is_dev_run, require_agreement, run_length, steps_done


class QuantizationAwareTraining(ModelEdit):
    """Train any LightningModule's Hugging Face model while its layers round as they will.

    From its start on the model says what the quantized one would say, to the last bit, and learns
    to say it well; at the end of ``fit`` the best checkpoint's weights are quantized and become the
    best checkpoint. Pruning callbacks of the same run have to be done by then. With a
    DistillationModule the float model teaches.

    Args:
        scheme: ``int8-weight``, ``int4-weight``, ``int8-dynamic`` or ``int8-static``, which also
            learns its steps.
        group: how many neighbouring weights of four bits share a step.
        observer: how ``int8-static`` finds the steps that it starts from.
        smooth: strength of SmoothQuant, between 0 and 1; default: none.
        symmetric: whether the steps of ``int8-static`` are counted from zero, as TensorRT needs it.
        keep: names of modules that stay in floating point.
        start: share of the run after which layers round.
        freeze: share of the run, at its end, in which learned steps stay what they are.
        calibration_examples: how many training examples to look at, where that is needed.

    Raises:
        InputError: an option is out of range, or the model cannot be quantized so; before the
            training starts.

    Source: ``lightning_compress.quantization.fake_quantized`` names them.
    """

    def __init__(
        self,
        *,
        scheme: SchemeName = "int8-dynamic",
        group: int = 32,
        observer: Observer = "mse",
        smooth: float | None = None,
        symmetric: bool = False,
        keep: Sequence[str] = (),
        start: float = 0.0,
        freeze: float = 0.1,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._options = Options(group, observer, smooth, symmetric, tuple(keep))
        for name, share in (("start", start), ("freeze", freeze)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is a share of the run in [0, 1), not {share}")
        if start + freeze >= 1:
            raise InputError(
                f"start and freeze are {start + freeze:g} of the run together: less than all of it"
            )
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")
        self._start = 0  # the steps at which
        self._freeze = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that it can be done, before anything is trained."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if not self.target_reached:
            check_preparation(model, self.hparams["scheme"], self._options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay it out over the run."""
        run, _ = run_length(trainer)
        self._start = round(self.hparams["start"] * run) if self.hparams["start"] else 0
        self._freeze = (1 - self.hparams["freeze"]) * run
        self._prepare_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Let layers round when it is time."""
        self._prepare_if_due(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Leave learned steps alone towards the end."""
        if trainer.global_step >= self._freeze:
            for parameter in stretches_of(reshapable_model(pl_module)):
                parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the run ended before quantization-aware training began."""
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._start,
            state="the model is not quantized",
            remedy="lower start",
        )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Quantize, and make the result the best checkpoint."""
        model = reshapable_model(pl_module)
        if is_dev_run(trainer) or not is_prepared(model):
            return
        load_best(trainer, pl_module)
        convert_(model)
        require_agreement(trainer, digest_of(manifest_of(model)), "what to quantize")
        coverage = coverage_of(model)
        log_quantization(trainer, coverage, {})
        rank_zero_info(said_of(self.hparams["scheme"], coverage))
        save_as_best(trainer)

    def _prepare_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.target_reached or steps_done(trainer, pl_module) < self._start:
            return
        model = reshapable_model(pl_module)
        dense_models.save(trainer, pl_module)
        batches: Sequence[Batch] = ()
        if needs_examples(self.hparams["scheme"], self._options):
            seen = calibration_for(trainer, model, self.hparams["calibration_examples"])
            batches = seen.batches
        with evaluating(model):
            prepare_(
                model,
                self.hparams["scheme"],
                self._options,
                calibration=batches,
                technique="quantization_aware_training",
            )
        model.train(pl_module.training)
        rebuild_optimizers(trainer)
        follow_reshaping(trainer)
        self._progress.reach_target(
            trainer,
            f"Fake quantization to {self.hparams['scheme']} from step {self._start} on.",
        )
