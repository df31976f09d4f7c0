"""The interface of a task: everything that training, evaluation and distillation ask about it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX, Batch, ProblemType

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Distribution = Literal["categorical", "bernoulli", "continuous", "embedding"]
"""How logits become predictions: a softmax over classes, a sigmoid for each label, or numbers, of
which each counts or which are one vector.
"""


class Task(ABC):
    """What a model is trained for. Instances have no state.

    Shapes: logits are [B, C] (``per_token`` False) or [B, S, C]; labels are as the methods name
    them, and an example or a token without a label has -100, or NaN where labels are numbers.

    Attributes:
        name: value of the option ``task``. Tasks that share a model class share the name and differ
            in ``problem_type``, or in the models that they fit.
        problem_type: the value of ``config.problem_type`` of transformers; None where it has none.
        auto_class: class of transformers that loads a model with the head of this task.
        primary_metric: name of the metric that decides which model is better.
        higher_is_better: direction of the primary metric.
        distribution: how logits become predictions.
        per_token: logits and labels are per token and not per example.
        over_vocabulary: the classes are the tokens of the vocabulary and not the labels of the
            data.
        over_positions: the classes are the positions of the text.
        embeds: logits are embeddings of texts; neither the model nor the data have classes.
        declared: the class of a model does not imply this task: the field ``finetuning_task`` of
            its configuration has to name it.
    """

    name: ClassVar[str]
    problem_type: ClassVar[ProblemType | None] = None
    auto_class: ClassVar[str]
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    distribution: ClassVar[Distribution] = "categorical"
    per_token: ClassVar[bool] = False
    over_vocabulary: ClassVar[bool] = False
    over_positions: ClassVar[bool] = False
    embeds: ClassVar[bool] = False
    declared: ClassVar[bool] = False

    def declare_(self, model: nn.Module) -> None:
        """Note in a model's configuration that this is its task; of declared tasks only."""
        config: Any = model.config
        config.finetuning_task = self.name

    def fits(self, config: "PreTrainedConfig") -> bool:
        """Whether this may be a model's task, of several with one name and no problem type."""
        return True

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch over its targets, a float32 scalar.

        A batch without targets has loss zero and zero gradients.
        """

    def weighted_loss(self, class_weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss with a weight for each class, [C] float32.

        Raises:
            InputError: the task has no classes that could be weighted.
        """
        raise InputError(
            f"model.class_weights: the loss of {self.problem_type or self.name} has no classes to "
            "weigh: leave the option out"
        )

    @abstractmethod
    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Build the metrics, to be updated with :meth:`predictions_and_targets`.

        Args:
            num_labels: number of labels of a classifier.
            label_names: what the labels are called, in their order.

        Raises:
            InputError: the metrics need the number of labels, and it is not known.
        """

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the metrics take, of one batch: by default classes, like the labels."""
        return logits.argmax(-1), labels

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which examples, boolean [B], or which positions, boolean [B, S], have a target."""
        return labels != IGNORE_INDEX

    def choices(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the logits with the classes of one prediction in the last axis.

        Args:
            logits: of a batch.
            mask: [B, S], which tokens are no padding.
        """
        return logits

    def decisions(self, logits: Tensor) -> Tensor | None:
        """Return the discrete predictions, of :meth:`choices`; None where they are numbers."""
        return logits.argmax(-1)

    @abstractmethod
    def predict(self, logits: Tensor) -> Batch:
        """Return what ``trainer.predict`` gives for a batch, tensors by name."""

    @abstractmethod
    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the primary metric that the best constant prediction may reach by luck.

        Args:
            examples: number of examples that the metric is computed on.
            label_counts: number of examples with each label, see :meth:`label_counts`.
            vocabulary: number of tokens that a language model chooses from.
        """

    def baseline_metric(self) -> Metric | None:
        """Return a metric, to be updated with labels, that computes the trivial baseline.

        None where the counts of :meth:`trivial_baseline` are enough.
        """
        return None

    def points_lost(self, before: float, after: float) -> float:
        """Return by how much the primary metric is worse, in points; negative if it is better.

        Where higher is better the metric is a fraction and a point is a hundredth; where lower is
        better, as of a perplexity, a point is 1.
        """
        return 100 * (before - after) if self.higher_is_better else after - before

    def label_counts(self, labels: Tensor, num_labels: int) -> Tensor:
        """Return how many examples of a batch have each label, [num_labels]; zeros if not used."""
        return labels.new_zeros(num_labels)
