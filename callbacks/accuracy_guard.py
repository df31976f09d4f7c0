"""The accuracy guard of post-training quantization on the validation examples of a run."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import Example, length_bucketed, spread_evenly
from lightning_compress.evaluation.measurement import NotFiniteError, evaluate
from lightning_compress.evaluation.model_under_test import check_examples
from lightning_compress.evaluation.runtimes.eager import TorchModel
from lightning_compress.models.forward import device_of
from lightning_compress.progress import Advance, progress_bar
from lightning_compress.quantization import QuantizationConfig, quantize_
from lightning_compress.quantization.accuracy_guard import (
    Group,
    GuardChoice,
    choose_given_back,
    describe_refusal,
    groups_by_weight,
    record_guard_,
)
from lightning_compress.quantization.modules import Quantized, in_place_of_float
from lightning_compress.quantization.quantize import quantized_modules
from lightning_compress.quantization.sensitivity import divergences_with
from lightning_compress.tasks import task_of
from lightning_compress.tasks.labels import metrics_of
from lightning_compress.types import Batch, main_input

from .calibration_batches import as_calibration
from .split_examples import examples_of_all, split_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DIVERGENCE_EXAMPLES = 128  # they only break ties


class AccuracyGuard:
    """Measures on the validation split what quantization costs, and what has to be given back.

    Neither the module's ``validation_step`` nor its logged metrics take part.

    Args:
        trainer: of the run, during ``fit``.
        model: a floating-point model, in eval mode.
        max_loss: largest loss of the primary metric that fits, in points.

    Attributes:
        divergences: in nats by name of the module that alone was quantized, largest first; empty
            where they were not measured.

    Raises:
        InputError: see :func:`validation_examples`.
    """

    def __init__(self, trainer: L.Trainer, model: "PreTrainedModel", max_loss: float) -> None:
        self._trainer, self._model, self._max_loss = trainer, model, max_loss
        self._task = task_of(model)
        self._examples, self._batch_size = validation_examples(trainer, model)
        self._batches = self._in_batches(self._examples)
        self._before: float | None = None
        self._choice: GuardChoice | None = None
        self.divergences: dict[str, float] = {}

    def choose(
        self, config: QuantizationConfig, calibration_batches: Sequence[Batch]
    ) -> list[str] | None:
        """Choose the modules to give back; None if the loss does not fit in any case.

        Args:
            config: how the model is to be quantized.
            calibration_batches: training examples, where the options need some.
        """
        made: dict[str, Quantized] = {}
        if config.precision.dtype is None:
            made, _ = quantized_modules(self._model, config, calibration_batches)
        groups = groups_by_weight(self._model, made)
        evaluations = 2 + 2 * len(groups)  # at most, and a divergence of each group
        steps = evaluations * len(self._batches) + len(groups)
        shown = self._trainer.progress_bar_callback is not None
        with progress_bar(steps, shown=shown) as advance:
            self._before = self._metric(self._model, "Evaluating: floating point", advance)
            if self._before is None:
                return None
            self._choice = choose_given_back(
                groups,
                lambda names: self._loss_without(names, config, made, advance),
                max_loss=self._max_loss,
                divergences=lambda: self._divergences(groups, made, advance),
            )
        return list(self._choice.given_back) if self._choice.fits else None

    def record_(self) -> str:
        """Record what was chosen on the model, which is now quantized; returns a sentence on it."""
        assert self._choice is not None
        assert self._before is not None
        text = record_guard_(
            self._model,
            self._choice,
            max_loss=self._max_loss,
            metric=self._task.primary_metric,
            before=self._before,
            examples=len(self._examples),
        )
        return f"{text[0].upper()}{text[1:]}."

    def refusal(self, config: QuantizationConfig) -> str:
        """Why the model stays in floating point, and what to do."""
        return describe_refusal(
            self._choice,
            scheme=config.scheme,
            max_loss=self._max_loss,
            metric=self._task.primary_metric,
            examples=len(self._examples),
        )

    def _in_batches(self, examples: Sequence[Example]) -> list[Batch]:
        pad = getattr(self._model.config, "pad_token_id", None)
        return length_bucketed(
            examples, self._batch_size, pad_token_id=0 if pad is None else int(pad)
        )

    def _metric(self, model: "PreTrainedModel", what: str, advance: Advance) -> float | None:
        """The primary metric, the same in every process; None if it is not finite."""
        try:
            value = evaluate(
                TorchModel(model, model),
                self._batches,
                task=self._task,
                metrics=metrics_of(model),
                advance=partial(advance, what, 1),
            )[self._task.primary_metric]
        except NotFiniteError:
            value = None
        # Devices may round differently, and all processes must go the same way.
        return self._trainer.strategy.broadcast(value)

    def _loss_without(
        self,
        names: Sequence[str],
        config: QuantizationConfig,
        made: dict[str, Quantized],
        advance: Advance,
    ) -> float:
        assert self._before is not None
        modules = {name: module for name, module in made.items() if name not in names}
        what = f"{len(modules)} of {len(made)} modules quantized" if made else config.scheme
        with _quantized(self._model, config, modules) as model:
            after = self._metric(model, f"Evaluating: {what}", advance)
        if after is None:
            return math.inf
        # Metrics are float32: one example in 200 is half a point and not 0.5000001.
        return round(self._task.points_lost(self._before, after), 4)

    def _divergences(
        self, groups: Sequence[Group], made: dict[str, Quantized], advance: Advance
    ) -> list[float]:
        batches = self._in_batches(spread_evenly(self._examples, _DIVERGENCE_EXAMPLES))
        device = device_of(self._model)
        batches = [{name: value.to(device) for name, value in one.items()} for one in batches]
        found = divergences_with(
            self._model,
            [{name: made[name] for name in group} for group in groups],
            as_calibration(self._model, batches),
            on_progress=lambda name: advance(f"Quantizing {name} alone", 1),
        )
        found = self._trainer.strategy.broadcast(found)
        pairs = sorted(zip(found, groups, strict=True), reverse=True)
        self.divergences = {name: value for value, group in pairs for name in group}
        return found


@contextmanager
def _quantized(
    model: "PreTrainedModel", config: QuantizationConfig, modules: dict[str, Quantized]
) -> "Iterator[PreTrainedModel]":
    """The model with quantized modules, or a copy of it in 16 bits."""
    if config.precision.dtype is None:
        with in_place_of_float(model, modules):
            yield model
    else:
        made = copy.deepcopy(model)
        quantize_(made, config)
        yield made


def validation_examples(trainer: L.Trainer, model: "PreTrainedModel") -> tuple[list[Example], int]:
    """The labelled validation examples of all processes, and the size of a batch.

    Args:
        trainer: of the run, during ``fit``.
        model: the model to evaluate.

    Raises:
        InputError: there are none, they do not fit the model, or its task has no metric.
    """
    if not trainer.enable_validation:
        raise InputError(
            "max_loss is measured on validation data and the run has none: give it a validation "
            "dataloader and a validation_step, with trainer.limit_val_batches above 0; or leave "
            "out max_loss"
        )
    try:
        task = task_of(model)
        # Without training (max_epochs: 0) Lightning has not done so.
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        with isolate_rng():  # the random numbers of the training stay the same
            batches = list(split_batches(trainer.val_dataloaders, trainer.num_val_batches))
        examples = examples_of_all(trainer, batches, "validation")
        examples = [
            one
            for one in examples
            if one.labels is not None and bool(task.target_mask(one.labels[None]).any())
        ]
        if not examples:
            raise InputError("no validation example has a label: add labels, or leave out max_loss")
        check_examples("trained", model, examples, split="validation")
    except InputError as error:
        raise InputError(f"max_loss: {error}") from error
    return examples, max(len(main_input(batch)) for batch in batches)
