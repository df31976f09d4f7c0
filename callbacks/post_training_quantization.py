"""When to quantize without training: once, at the end of a fit, on the best weights it found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.progress import progress_bar
from lightning_compress.quantization import (
    Observer,
    Options,
    SchemeName,
    check_quantization,
    needs_examples,
    quantize_,
    sensitivities,
)
from lightning_compress.types import Batch

from .calibration_batches import calibration_for
from .figures import log_quantization, said_of
from .post_training import PostTraining
from .run import digest_of, require_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXAMPLES_OF_CHANGE = 128  # what one module's rounding changes shows on few examples


class PostTrainingQuantization(PostTraining):
    """Quantize a trained model without training it again.

    Runs at the end of ``fit``, on the best checkpoint's weights if a ModelCheckpoint watches the
    run, and leaves the result as the best checkpoint. With ``trainer.max_epochs: 0`` nothing is
    trained at all. Works on any LightningModule around a Hugging Face model, pruned or not; to
    measure many schemes beside each other name them in ``precisions`` of CompressionBenchmark.

    Args:
        scheme: ``bf16``, ``fp16`` (all is cast); ``int8-weight``, ``int4-weight`` (weights only);
            ``int8-dynamic`` (weights row by row, inputs token by token) or ``int8-static`` (inputs
            in steps found on training examples). Embeddings have eight bits then.
        group: how many neighbouring weights of four bits share a step.
        observer: how the steps of ``int8-static`` are found: ``minmax``, ``percentile``, ``mse``.
        smooth: strength of SmoothQuant, between 0 and 1; default: none.
        symmetric: whether the steps of ``int8-static`` are counted from zero, as TensorRT needs it.
        keep: names of modules that stay in floating point.
        worst: measure how much each module's rounding moves the predictions, and leave so many of
            the linear layers that move them most in floating point; default: not measured.
        calibration_examples: how many training examples to look at, where that is needed.

    Raises:
        InputError: an option is out of range, the model cannot be quantized so or is quantized
            already; all of it before the training starts.

    Source: ``lightning_compress.models.modeling_quantized`` and the files of
    ``lightning_compress.quantization`` name theirs.
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
        worst: int | None = None,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._options = Options(group, observer, smooth, symmetric, tuple(keep))
        if worst is not None and worst < 0:
            raise InputError(f"worst must be at least 0, not {worst}")
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")

    def _check(self, model: "PreTrainedModel") -> None:
        check_quantization(model, self.hparams["scheme"], self._options)

    def _compress(self, trainer: L.Trainer, model: "PreTrainedModel") -> str:
        options, scheme = self._options, self.hparams["scheme"]
        batches: Sequence[Batch] = ()
        moved: dict[str, float] = {}
        if needs_examples(scheme, options):
            seen = calibration_for(trainer, model, self.hparams["calibration_examples"])
            batches = seen.batches
        if self.hparams["worst"] is not None:
            moved = self._sensitivities(trainer, model)
        # An embedding would take its bytes back, which are most of a small model's.
        linear = [one for one in moved if not isinstance(model.get_submodule(one), nn.Embedding)]
        coverage = quantize_(
            model,
            scheme,
            calibration=batches,
            group=options.group,
            observer=options.observer,
            smooth=options.smooth,
            symmetric=options.symmetric,
            keep=[*options.keep, *linear[: self.hparams["worst"] or 0]],
            technique="post_training_quantization",
        )
        log_quantization(trainer, coverage, moved)
        require_agreement(trainer, digest_of(manifest_of(model)), "what to quantize")
        return said_of(scheme, coverage)

    def _sensitivities(self, trainer: L.Trainer, model: "PreTrainedModel") -> dict[str, float]:
        examples = min(self.hparams["calibration_examples"], _EXAMPLES_OF_CHANGE)
        seen = calibration_for(trainer, model, examples)
        modules = sum(parameter.dim() == 2 for parameter in model.parameters())
        with progress_bar(modules, shown=trainer.progress_bar_callback is not None) as advance:
            return sensitivities(
                model,
                self.hparams["scheme"],
                seen,
                self._options,
                on_progress=lambda name: advance(f"quantizing {name} alone", 1),
            )
