"""Fine-tuning of any Hugging Face classifier, causal or masked language model."""

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_compress.compression_state import store_compression
from lightning_compress.data.info import DataInfo
from lightning_compress.data.labels import KnownLabels
from lightning_compress.errors import InputError, NonFiniteLossError, require_number
from lightning_compress.models import apply_masks_
from lightning_compress.models.finite import is_finite, not_finite
from lightning_compress.models.forward import logits_in, model_inputs
from lightning_compress.models.manifest import require_float
from lightning_compress.models.masks import masks_of
from lightning_compress.models.sentence_embedding import Pooling
from lightning_compress.modules.checkpoint import (
    checkpoint_options,
    model_options,
    restore_shapes_,
)
from lightning_compress.modules.class_weights import ClassWeights, check_weights, training_loss
from lightning_compress.modules.labels import known_labels, label_fields
from lightning_compress.modules.optimizers import (
    check_warmup,
    optimizer_for,
    optimizer_spec,
    schedule_factor,
    scheduled,
)
from lightning_compress.modules.pretrained import build_model
from lightning_compress.modules.tokens import require_readable, resize_embeddings_
from lightning_compress.resuming import require_same_options
from lightning_compress.tasks import task_named, task_of
from lightning_compress.tasks.labels import labels_of, metrics_of
from lightning_compress.types import Batch, ProblemType

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_KEPT = ("optimizer", "learning_rate", "weight_decay")  # the optimizer's state holds them


class FineTuningModule(L.LightningModule):
    """Train a Hugging Face model on its task and measure it by the task's metrics.

    The model is built once the data are known, from ``pretrained`` or from ``config``. A
    checkpoint alone is enough to get it back: ``load_from_checkpoint`` needs neither the folder
    that the training started from nor the data.

    Args:
        pretrained: Hub name, Hugging Face folder or compressed folder to start from.
        config: fields of the model's configuration, to change a pretrained model's (dropout) or,
            with ``model_type``, to build one from scratch; vocabulary and labels come from data.
        task: ``sequence-classification``, ``token-classification``, ``question-answering``,
            ``sentence-similarity``, ``reranking``, ``causal-lm`` or ``masked-lm``.
        num_labels: classes or numbers to predict; default: as many as the data have. Given by
            hand, it puts a new head in the place of one of another size.
        problem_type: kind of labels; default: that of the data.
        class_weights: how much each class counts in the training loss (with several labels: the
            examples that have the label, torch's ``pos_weight``): ``balanced``, a list in the order
            of the classes, or a mapping by their names. ``val_loss`` and ``test_loss`` have none.
        resize_embeddings: add untrained embeddings of tokens that only the tokenizer knows.
        pooling: of sentence-similarity: ``mean`` over the tokens or ``cls``, the first one;
            default: as the model's files for sentence-transformers state it, else ``mean``.
        optimizer: optimizer class with its options, or in Python a class or ``functools.partial``;
            default: AdamW. The next two options hold for it, whatever its own defaults are.
        learning_rate: peak of the schedule.
        weight_decay: weight decay of matrices; vectors (biases, norms) are never decayed.
        schedule: a schedule of ``transformers.get_scheduler``: ``linear``, ``cosine``,
            ``polynomial``, ``constant_with_warmup``, ``inverse_sqrt``, ``warmup_stable_decay``, ...
        schedule_options: further arguments of the schedule, such as ``min_lr``.
        warmup: fraction of the steps over which the learning rate rises, in [0, 1].

    Raises:
        InputError: the task, the optimizer or the schedule does not exist or refuses its options.

    Logs ``train_loss``, ``val_loss``, ``val_<metric>``, ``test_<metric>`` and ``learning_rate``.
    """

    restores_compression: Literal[True] = True
    model: "PreTrainedModel"
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        task: str = "sequence-classification",
        num_labels: int | None = None,
        problem_type: ProblemType | None = None,
        class_weights: ClassWeights | None = None,
        resize_embeddings: bool = False,
        pooling: Pooling | None = None,
        optimizer: OptimizerCallable | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        schedule: str = "linear",
        schedule_options: dict[str, Any] | None = None,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # logged at the end, together with the metrics
        if optimizer is not None:  # a checkpoint holds a description, which it can be loaded from
            self.hparams["optimizer"] = optimizer_spec(self.hparams["optimizer"])
        check_warmup(warmup)
        require_number("model.learning_rate", learning_rate)
        require_number("model.weight_decay", weight_decay)
        require_number("model.num_labels", num_labels or 1, least=1, most=1e6)
        check_weights(class_weights)
        # Wrong names and options fail here and not after the data are tokenized.
        schedule_factor(
            schedule, schedule_options, learning_rate=learning_rate, warmup_steps=1, total_steps=10
        )
        self.task = task_named(task, problem_type)
        self._training_loss: Callable[[Tensor, Tensor], Tensor] = self.task.loss
        # The checkpoint that a command restores, whose labels hold; Lightning names it too late.
        self.restored_from: str | None = None
        self._labels: dict[str, Any] = {}
        self._vocabulary: dict[str, Any] = {}
        self._seed: int | None = None

    @property
    def learns_without_labels(self) -> bool:
        """Whether the loss has a term that needs no labels."""
        return False

    @property
    def known_labels(self) -> KnownLabels:
        """What model and options say of the labels; data modules ask before they read theirs."""
        if "model" in self._modules:
            return labels_of(self.model)
        stored = None if self.restored_from is None else checkpoint_options(self.restored_from)
        return known_labels(stored or self.hparams, self.task)

    def setup(self, stage: str) -> None:
        """Read labels and vocabulary, which the model has to fit, off the data module."""
        data = DataInfo.of_trainer(self.trainer)
        if data.train_on == "unlabelled" and not self.learns_without_labels:
            raise InputError(
                "data.train_on is unlabelled, and there is nothing to learn without labels: use "
                "lightning_compress.modules.DistillationModule, which learns from a teacher"
            )
        self._vocabulary = data.vocabulary or self._vocabulary
        if not self.task.over_vocabulary:
            self._labels = label_fields(self.known_labels, data)
        if self._seed is None:
            self._seed = torch.initial_seed()

    def configure_model(self) -> None:
        """Build the model and the metrics, once."""
        if "model" in self._modules:
            return
        self.model = self._build()
        self.model.train()
        if getattr(self.model.config, "pad_token_id", 0) is None:
            # Without it a decoder cannot distinguish a sequence's last token from padding.
            self.model.config.pad_token_id = self._vocabulary.get("pad_token_id")
        self.task = task_of(self.model)
        metrics = metrics_of(self.model)
        self.val_metrics, self.test_metrics = metrics, metrics.clone()
        tokens = self._vocabulary.get("vocab_size", 0)
        if self.hparams["resize_embeddings"]:
            resize_embeddings_(self.model, tokens)
        require_readable(self.model, tokens, DataInfo.of_trainer(self._trainer).max_length)

    def _build(self) -> "PreTrainedModel":
        """Make the model that is trained."""
        labels = {name: value for name, value in self._labels.items() if value is not None}
        return build_model(
            pretrained=self.hparams["pretrained"],
            config=self.hparams["config"],
            task=self.task,
            labels={} if self.task.over_vocabulary else labels,
            vocabulary=self._vocabulary,
            new_head=self.known_labels.names is None,
            pooling=self.hparams["pooling"],
        )

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch: [B, C] of a classifier, [B, S, V] of a language model."""
        inputs = model_inputs(self.model, batch)
        return logits_in(self.model(**inputs), self.model, inputs)

    def on_fit_start(self) -> None:
        """Weigh the classes in the loss of the training."""
        frequencies = DataInfo.of_trainer(self.trainer).label_frequencies
        weights = self.hparams["class_weights"]
        self._training_loss = training_loss(self.model, weights, frequencies)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of this batch (dropout) by the run, the batch and the rank.

        So a resumed run draws what the uninterrupted one would have drawn.
        """
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx
        key = f"{self._seed}-{batches}-{self.global_rank}"
        seed = random.Random(key).getrandbits(63)
        # torch.manual_seed would also note down a stack trace for each kind of device, every time.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch "
                f"{self.current_epoch}, batch {batch_idx}): lower model.learning_rate, use "
                "trainer.gradient_clip_val or a wider trainer.precision"
            )
        self.log("train_loss", loss.detach(), prog_bar=True)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set elsewhere
        if every and (self.global_step + 1) % every == 0:  # a logger takes no other
            self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        """What is minimised."""
        return self._training_loss(self(batch), batch["labels"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one validation batch."""
        self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one test batch."""
        self._measure(batch, "test", self.test_metrics)

    def _measure(self, batch: Batch, split: str, metrics: MetricCollection) -> Tensor:
        """Update the metrics with a batch, log its loss and return its logits."""
        logits, labels = self._predicted(batch), batch["labels"]
        loss = self.task.loss(logits, labels)
        metrics.update(*self.task.predictions_and_targets(logits, labels))
        self.log(f"{split}_loss", loss, batch_size=len(labels), sync_dist=True)
        return logits

    def _predicted(self, batch: Batch) -> Tensor:
        """Logits, which are finite: no metric is computed from others."""
        logits: Tensor = self(batch)
        if not is_finite(logits, batch):
            raise InputError(not_finite(self.model, batch, str(self.trainer.precision)))
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, split: str, metrics: MetricCollection) -> None:
        for name, value in metrics.compute().items():
            # Already reduced over all processes; sync_dist keeps Lightning from warning.
            shown = name == self.task.primary_metric
            self.log(f"{split}_{name}", value.float(), prog_bar=shown, sync_dist=True)
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """``example_id`` [B] and the predictions of the task, see its ``predict``.

        ``class`` [B], ``probabilities`` and ``logits`` [B, C] in classification, for example.
        """
        predictions = self.task.predict(self._predicted(batch).float())
        return {"example_id": batch["example_id"], **predictions}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and a schedule per step; pruned weights of the starting model stay zero."""
        require_float(self.model, "train the model that it came from", prepared=True)
        options = self.hparams
        optimizer = optimizer_for(
            self, options["optimizer"], options["learning_rate"], options["weight_decay"]
        )
        if masks_of(self.model):
            optimizer.register_step_post_hook(lambda *_: apply_masks_(self.model))
        schedule = scheduled(
            optimizer,
            options["schedule"],
            options["warmup"],
            self.trainer.estimated_stepping_batches,
            options["schedule_options"],
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "learning_rate"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in the model's own configuration and manifest, so that no other file is needed."""
        checkpoint["hyper_parameters"] |= model_options(self.model, self.task)
        store_compression(self.model, checkpoint)
        checkpoint["seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the model the checkpoint's shapes, before the weights arrive.

        Raises:
            InputError: the checkpoint is of another model, or a resumed run has another optimizer.
        """
        restore_shapes_(self, checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            require_same_options("model", checkpoint["hyper_parameters"], self.hparams, _KEPT)
        self._seed = checkpoint["seed"]
