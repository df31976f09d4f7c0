"""Distillation: train a student on the outputs of a teacher, besides the labels."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_compress.data.info import DataInfo
from lightning_compress.data.labels import KnownLabels
from lightning_compress.data.places import place_named
from lightning_compress.distillation.objective import Losses, Objective
from lightning_compress.distillation.outputs import (
    Outputs,
    RequestedOutputs,
    TopK,
    depth_of,
    run_with_outputs,
)
from lightning_compress.distillation.soft_targets import soft_target_loss
from lightning_compress.distillation.student_init import keep_every_nth_layer_
from lightning_compress.distillation.teacher import LiveTeacher, Teacher
from lightning_compress.errors import InputError, require_choice, require_number
from lightning_compress.models.families import is_causal
from lightning_compress.modules.fine_tuning import FineTuningModule
from lightning_compress.modules.options import FineTuningOptions
from lightning_compress.modules.teacher_inputs import CacheUse, maybe_cached, retokenized_inputs
from lightning_compress.modules.teacher_setup import (
    check_inputs,
    check_labels,
    check_teacher,
    evaluate_teacher,
    load_teacher,
    or_of_teacher,
)
from lightning_compress.types import Batch, Chart, KeywordsOf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillationModule(FineTuningModule):
    """Train a student on the outputs of a teacher, besides the labels.

    Callbacks and data modules that work with a FineTuningModule work with it: the student is the
    model that is measured, compressed and saved; the teacher is in no checkpoint.

    Args:
        teacher: Hub name, Hugging Face folder, compressed folder or checkpoint of a
            FineTuningModule, trained on the task; ``dense``: the dense model that the student is
            compressed from (``dense/`` beside it in a run's folder, or ``pretrained`` itself
            before this run compresses it).
        losses: the terms of the loss, each with its weight; null leaves a term out.
        every_nth_layer: initialize the student from every n-th layer of the teacher, instead of
            ``pretrained``.
        teacher_cache: whether to run the teacher once on every text and cache its outputs:
            ``always``, ``never``, or ``auto`` (where the losses allow it and the run is an epoch or
            longer). Hidden states, which take much disk space, are only cached with ``always``.
        cache_dir: folder of the cache.
        top_k: number of a language model's largest logits to cache, at every token.
        options: those of :class:`FineTuningModule`.

    Logs, besides the metrics of FineTuningModule, ``train_<term>`` of every term, ``val_agreement``
    (fraction of equal predictions), ``val_divergence`` (KL divergence of the student's predictions
    from the teacher's, in nats) and ``val_teacher_<metric>``.

    Raises:
        InputError: the teacher is missing, does not fit the student or is no better than chance;
            before the first step.
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        losses: Losses = Losses(),  # noqa: B008  # it is immutable
        every_nth_layer: int | None = None,
        teacher_cache: CacheUse = "auto",
        cache_dir: str = ".cache",
        top_k: int = 64,
        **options: KeywordsOf[FineTuningOptions],
    ) -> None:
        super().__init__(**options)
        if top_k < 1:
            raise InputError(f"model.top_k must be at least 1, not {top_k}")
        require_number("model.every_nth_layer", every_nth_layer or 1, least=1)
        self.losses = losses
        require_choice("model.teacher_cache", teacher_cache, get_args(CacheUse))
        # A LiveTeacher from setup on; at the start of training its cache may take its place.
        self._teacher: Teacher | None = None
        self._teacher_metrics: dict[str, float] = {}
        terms = [name for name, term in vars(losses).items() if term is not None]
        if not terms:
            raise InputError("model.losses are all null: there is nothing to learn")
        self._terms_chart = Chart("terms", tuple(f"^train_{name}$" for name in terms))
        self.charts: tuple[Chart, ...] = (self._terms_chart,)

    @property
    def learns_without_labels(self) -> bool:
        """Whether the loss has a term besides that of the task."""
        return any(term is not None for name, term in vars(self.losses).items() if name != "task")

    @property
    def known_labels(self) -> KnownLabels:
        """Those of the student, or else of the teacher, whose outputs it learns."""
        known, teacher = super().known_labels, self.hparams["teacher"]
        if teacher is None:
            return known
        return or_of_teacher(known, teacher, student=self.hparams["pretrained"], task=self.task)

    def setup(self, stage: str) -> None:
        """Load the teacher before a fit."""
        super().setup(stage)
        if stage == "fit" and self._is_taught() and not isinstance(self._teacher, LiveTeacher):
            model = self._load_teacher()
            data = getattr(self.trainer, "datamodule", None)
            inputs = retokenized_inputs(self.hparams["teacher"], data, per_token=self._per_token())
            check_inputs(
                model,
                tokens=None if inputs else self._vocabulary.get("vocab_size"),
                max_length=DataInfo.of(data).max_length,
            )
            self._teacher = LiveTeacher(model, inputs)

    def configure_model(self) -> None:
        """Build the student and the objective."""
        super().configure_model()
        metric = self.task.primary_metric
        self.charts = (
            self._terms_chart,
            Chart("student and teacher", (f"^val_{metric}$", f"^val_teacher_{metric}$")),
        )
        if not isinstance(self._teacher, LiveTeacher) or "objective" in self._modules:
            return
        teacher = self._teacher.model
        check_teacher(teacher, self.model, self.task)
        self.objective = Objective(
            self.losses,
            self.model,
            teacher,
            self.task.distribution,
            causal=is_causal(self.model.config),
            choices=self.task.choices,
        )

    def _build(self) -> "PreTrainedModel":
        every = self.hparams["every_nth_layer"]
        if every is None:
            return super()._build()
        if self.hparams["pretrained"] is not None:
            raise InputError(
                "model.every_nth_layer makes the student of the teacher, and model.pretrained "
                "names another: give one of them"
            )
        config = self.hparams["config"] or {}
        if "model_type" in config:
            raise InputError(
                "model.every_nth_layer makes the student of the teacher, and "
                "model.config.model_type asks for a new model: give one of them"
            )
        student = self._load_teacher(config)
        if not self.task.over_vocabulary:
            check_labels(student, self._labels, whose="the data")
            names = {"id2label", "label2id"} & self._labels.keys()
            student.config.update({name: self._labels[name] for name in names})
        student.requires_grad_(True)
        keep_every_nth_layer_(student, every)
        return student

    def _is_taught(self) -> bool:
        """Whether there is a teacher; a subclass may do without one."""
        return True

    def _load_teacher(self, config: dict[str, Any] | None = None) -> "PreTrainedModel":
        name = self.hparams["teacher"]
        if name is None:
            raise InputError("there is no teacher: name its folder in model.teacher")
        return load_teacher(name, student=self.hparams["pretrained"], task=self.task, config=config)

    def _per_token(self) -> bool:
        inner = (self.losses.hidden_states, self.losses.attention_maps, self.losses.relations)
        return self.task.per_token or self.task.over_positions or any(inner)

    def on_train_start(self) -> None:
        """Evaluate the teacher, and cache its outputs where that is possible."""
        if not self._is_taught():
            return
        teacher = self._teacher
        assert isinstance(teacher, LiveTeacher)
        teacher.model.to(self.device)  # type: ignore[arg-type]  # wrapped by transformers
        self._open_validation()
        if any(self.trainer.num_val_batches):
            self._teacher_metrics = evaluate_teacher(
                teacher, self._validation_batches(), self.trainer
            )
        self._report_teacher_metrics()
        soft = self.losses.soft_targets
        _, requested = self.objective.requested(depth_of(self.model))
        self._teacher = maybe_cached(
            teacher,
            requested,
            self.trainer,
            use=self.hparams["teacher_cache"],
            cache_dir=place_named("model.cache_dir", self.hparams["cache_dir"]),
            top_k=self.hparams["top_k"] if self.task.over_vocabulary else None,
            temperature=None if soft is None else soft.temperature,
        )

    def _open_validation(self) -> None:
        """Make the validation dataloaders now, not when the first validation begins.

        The validation loop makes them in the validating stage only.
        """
        trainer = self.trainer
        if trainer.enable_validation and trainer.val_dataloaders is None:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True

    def _validation_batches(self) -> Iterator[Batch]:
        loaders = self.trainer.val_dataloaders or []
        for loader, limit in zip(
            loaders if isinstance(loaders, list) else [loaders],
            self.trainer.num_val_batches,
            strict=True,
        ):
            for batch in islice(loader, None if limit == float("inf") else int(limit)):
                yield self.trainer.strategy.batch_to_device(batch)

    def _report_teacher_metrics(self) -> None:
        if not self._teacher_metrics:
            rank_zero_info("There is no validation split to measure the teacher on.")
            return
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self._teacher_metrics.items())
        rank_zero_info(f"The teacher on the validation split: {metrics}.")
        for logger in self.trainer.loggers:
            logger.log_metrics(self._prefixed_teacher_metrics(), self.global_step)

    @property
    def later_metrics(self) -> set[str]:
        """Metrics of validations other than the sanity check."""
        names = ("agreement", "divergence", *(f"teacher_{name}" for name in self.val_metrics))
        return {f"val_{name}" for name in names}

    def _prefixed_teacher_metrics(self) -> dict[str, float]:
        return {f"val_teacher_{name}": value for name, value in self._teacher_metrics.items()}

    def _loss(self, batch: Batch) -> Tensor:
        if self._teacher is None:
            return super()._loss(batch)
        depth = depth_of(self.model)
        student_outputs, teacher_outputs = self.objective.requested(depth)
        progress = min(1.0, self.global_step / self.trainer.estimated_stepping_batches)
        student = run_with_outputs(self.model, batch, student_outputs)
        terms = self.objective(
            student,
            self._teacher(batch, teacher_outputs),
            depth=depth,
            progress=progress,
            target_mask=self._target_mask(batch),
        )
        weights = self.objective.weights(progress)
        if "task" in weights:
            assert isinstance(student.logits, Tensor)
            terms["task"] = self._training_loss(student.logits, batch["labels"])
        # Lightning's bookkeeping of a value takes longer than its computation.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set dynamically
        if every and (self.global_step + 1) % every == 0:
            self.log_dict({f"train_{name}": term.detach() for name, term in terms.items()})
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def _target_mask(self, batch: Batch) -> Tensor | None:
        """[B, S], True at the tokens with a target; None if targets are per example."""
        return self.task.target_mask(batch["labels"]) if self.task.per_token else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with a validation batch, and compare it with the teacher."""
        logits = self._measure(batch, "val", self.val_metrics)
        if self._teacher is not None and not self.trainer.sanity_checking:
            self._compare(logits, batch)

    def _compare(self, logits: Tensor, batch: Batch) -> None:
        assert self._teacher is not None
        outputs, mask = self._teacher(batch, RequestedOutputs()), self._target_mask(batch)
        teacher = self.objective.predictions(outputs, mask)
        logits = self.objective.predictions(Outputs(logits, outputs.mask), mask)
        divergence = soft_target_loss(logits, teacher, self.task.distribution, temperature=1.0)
        found = {"val_divergence": divergence}
        decisions = self.task.decisions(logits)
        largest = isinstance(teacher, TopK)
        expected = teacher.indices[..., 0] if largest else self.task.decisions(teacher)
        if decisions is not None and expected is not None:
            found["val_agreement"] = (decisions == expected).float().mean()
        self.log_dict(found, batch_size=len(logits), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split and those of the teacher."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.log_dict(
                self._prefixed_teacher_metrics(), sync_dist=True
            )  # they are equal already

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the student alone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"teacher": None, "every_nth_layer": None}
        del checkpoint["hyper_parameters"]["losses"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the student alone outside of a fit."""
        if "objective" not in self._modules:
            state = checkpoint["state_dict"]
            for name in [name for name in state if name.startswith("objective.")]:
                del state[name]
        super().on_load_checkpoint(checkpoint)
