"""The objective of distillation: its terms and their weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_compress.distillation.attention import (
    AttentionMaps,
    Relations,
    attention_map_loss,
    check_heads,
    check_split,
    relation_loss,
)
from lightning_compress.distillation.hidden_states import (
    Embeddings,
    HiddenStates,
    embedding_loss,
    hidden_state_loss,
)
from lightning_compress.distillation.options import (
    Annealed,
    annealed_at,
    check_annealed,
    layer_pairs,
)
from lightning_compress.distillation.outputs import Outputs, RequestedOutputs, depth_of, heads_of
from lightning_compress.distillation.soft_targets import SoftTargets, soft_target_loss
from lightning_compress.errors import InputError
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.structure import Units, linear_at, outputs_of
from lightning_compress.tasks.task import Distribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskLoss:
    """The loss of the task on the labels, where there are any.

    Args:
        weight: of the loss; two numbers: at the first and the last step.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Annealed = 0.1

    def __post_init__(self) -> None:
        check_annealed("losses.task.weight", self.weight, zero_at_one_end=True)


@dataclass(frozen=True)
class Losses:
    """The terms of distillation, each with its weight; null leaves a term out.

    Args:
        task: the loss on the labels.
        soft_targets: the teacher's output distribution.
        hidden_states: the teacher's hidden states.
        attention_maps: the teacher's attention probabilities.
        relations: similarities between tokens in the teacher's queries, keys and values.
        embeddings: the teacher's embedding of the text.
    """

    task: TaskLoss | None = field(default_factory=TaskLoss)
    soft_targets: SoftTargets | None = field(default_factory=SoftTargets)
    hidden_states: HiddenStates | None = None
    attention_maps: AttentionMaps | None = None
    relations: Relations | None = None
    embeddings: Embeddings | None = None


class Objective(nn.Module):
    """The terms that compare a student with its teacher, and the projections learned for them.

    Args:
        losses: the terms.
        student: a Hugging Face model; only its shape is used.
        teacher: a Hugging Face model; only its shape is used.
        distribution: how logits become predictions, see :class:`~lightning_compress.tasks.Task`.
        causal: a token attends to itself and the tokens before it only.
        choices: puts the classes of one prediction in the last axis of logits, by the mask [B, S];
            None: they are there.

    Raises:
        InputError: a term is not defined for this student and teacher.
    """

    def __init__(
        self,
        losses: Losses,
        student: "PreTrainedModel",
        teacher: "PreTrainedModel",
        distribution: Distribution,
        *,
        causal: bool,
        choices: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.losses = losses
        self.distribution = distribution
        self.causal = causal
        self.choices = choices
        self.teacher_depth = depth_of(teacher)
        self._check(student, teacher)
        widths = (int(student.config.hidden_size), int(teacher.config.hidden_size))
        self.hidden_projection = _projection(losses.hidden_states, *widths)
        self.embedding_projection = _projection(losses.embeddings, *widths)

    def _check(self, student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
        """Raise before the first step what would fail in it."""
        soft, maps = self.losses.soft_targets, self.losses.attention_maps
        numbers = self.distribution in ("continuous", "embedding")
        if soft is not None and soft.hard and numbers:
            raise InputError(
                "losses.soft_targets.hard: numbers have no most probable class; leave it out"
            )
        ours, theirs = int(student.config.hidden_size), int(teacher.config.hidden_size)
        if soft is not None and self.distribution == "embedding" and ours != theirs:
            raise InputError(
                f"losses.soft_targets: embeddings of {theirs} numbers and of {ours} cannot be "
                "compared one by one: leave it out and set losses.embeddings, which learns a "
                "projection"
            )
        self.requested(depth_of(student))
        if maps is not None or self.losses.relations is not None:
            self._check_heads(student, teacher)
        if maps is not None:
            for model in (student, teacher):
                _check_scores(model)

    def _check_heads(self, student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
        student_heads, teacher_heads = heads_of(student), heads_of(teacher)
        depth, relations = depth_of(student), self.losses.relations
        for one, other in self._pairs(self.losses.attention_maps, depth):
            check_heads(
                student_heads[one % len(student_heads)].count,
                teacher_heads[other % len(teacher_heads)].count,
            )
        if relations is None or relations.heads is None:
            return
        for one, other in self._pairs(relations, depth):
            for width in (
                *_widths(student, student_heads[one % len(student_heads)]),
                *_widths(teacher, teacher_heads[other % len(teacher_heads)]),
            ):
                check_split(width, relations.heads)

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of each term at a fraction of the run, in [0, 1]."""
        return {
            name: annealed_at(options.weight, progress)
            for name, options in vars(self.losses).items()
            if options is not None
        }

    def requested(self, depth: int) -> tuple[RequestedOutputs, RequestedOutputs]:
        """The outputs that the terms need of the student and of the teacher.

        Args:
            depth: number of layers of the student.

        Raises:
            InputError: a layer map names a layer that does not exist.
        """
        states = self._pairs(self.losses.hidden_states, depth)
        attention = [
            *self._pairs(self.losses.attention_maps, depth),
            *self._pairs(self.losses.relations, depth),
        ]
        embedding = self.losses.embeddings is not None
        student, teacher = (
            RequestedOutputs(
                frozenset(pair[side] for pair in states),
                frozenset(pair[side] for pair in attention),
                embedding,
            )
            for side in (0, 1)
        )
        return student, teacher

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        depth: int,
        progress: float,
        target_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """The unweighted terms by name, each a scalar.

        Args:
            student: outputs for a batch.
            teacher: outputs for the same batch.
            depth: number of layers of the student.
            progress: fraction of the run that is done, in [0, 1].
            target_mask: [B, S], True at the positions where a language model predicts a target.
        """
        terms: dict[str, Tensor] = {}
        if self.losses.soft_targets is not None:
            terms["soft_targets"] = self._soft_targets(student, teacher, progress, target_mask)
        for name, loss in (
            ("hidden_states", self._hidden_states),
            ("attention_maps", self._attention_maps),
            ("relations", self._relations),
        ):
            options = getattr(self.losses, name)
            if options is not None:
                losses = [loss(student, teacher, *pair) for pair in self._pairs(options, depth)]
                terms[name] = torch.stack(losses).mean()
        if self.losses.embeddings is not None:
            assert student.embedding is not None
            assert teacher.embedding is not None
            projected = self.embedding_projection(student.embedding)
            terms["embeddings"] = embedding_loss(projected, teacher.embedding)
        return terms

    def predictions(self, outputs: Outputs, target_mask: Tensor | None) -> Any:
        """The logits of a batch, or the largest, with the classes of a prediction in the last axis.

        Args:
            outputs: of student or teacher.
            target_mask: as of the call.
        """
        if target_mask is not None:
            return outputs.logits[target_mask]
        if self.choices is None or not isinstance(outputs.logits, Tensor):
            return outputs.logits
        return self.choices(outputs.logits, outputs.mask)

    def _soft_targets(
        self, student: Outputs, teacher: Outputs, progress: float, target_mask: Tensor | None
    ) -> Tensor:
        options = self.losses.soft_targets
        assert options is not None
        assert isinstance(student.logits, Tensor)
        return soft_target_loss(
            self.predictions(student, target_mask),
            self.predictions(teacher, target_mask),
            self.distribution,
            temperature=annealed_at(options.temperature, progress),
            hard=options.hard,
        )

    def _hidden_states(self, student: Outputs, teacher: Outputs, one: int, other: int) -> Tensor:
        projected = self.hidden_projection(student.hidden[one])
        return hidden_state_loss(projected, teacher.hidden[other], student.mask)

    def _attention_maps(self, student: Outputs, teacher: Outputs, one: int, other: int) -> Tensor:
        pair = student.attention[one], teacher.attention[other]
        return attention_map_loss(*pair, student.mask, causal=self.causal)

    def _relations(self, student: Outputs, teacher: Outputs, one: int, other: int) -> Tensor:
        assert self.losses.relations is not None
        pair = student.attention[one], teacher.attention[other]
        heads = self.losses.relations.heads
        return relation_loss(*pair, student.mask, causal=self.causal, heads=heads)

    def _pairs(
        self, term: HiddenStates | AttentionMaps | Relations | None, depth: int
    ) -> list[tuple[int, int]]:
        return [] if term is None else layer_pairs(term.layers, depth, self.teacher_depth)


def _check_scores(model: "PreTrainedModel") -> None:
    """Raise unless attention scores are the products of the queries and keys of heads."""
    if any(name.endswith("rotary_emb") for name, _ in model.named_modules()):
        raise InputError(
            "losses.attention_maps: this family applies rotary position embeddings to queries "
            "and keys after they are captured; use losses.relations"
        )
    if FAMILIES[model.config.model_type].relative_scores:
        raise InputError(
            "losses.attention_maps: attention of this family depends on relative positions too, "
            "not on queries and keys alone; use losses.relations"
        )


def _widths(model: nn.Module, heads: Units) -> list[int]:
    """Widths of the queries, keys and values of a layer."""
    return [outputs_of(linear_at(model, name)) // heads.parts for name in heads.inputs]


def _projection(term: object, student: int, teacher: int) -> nn.Module:
    """From the student's width to the teacher's; its initial weights keep the mean square."""
    if term is None or student == teacher:
        return nn.Identity()
    projection = nn.Linear(student, teacher, bias=False)
    nn.init.normal_(projection.weight, std=student**-0.5)
    return projection
