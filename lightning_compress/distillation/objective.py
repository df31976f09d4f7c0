"""The task itself: what the labels say, beside what the teacher says.

What a student is trained for: the terms of a distillation and their weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_compress.distillation.annealing import Ramped, at, check_ramp
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
from lightning_compress.distillation.layer_map import layer_pairs
from lightning_compress.distillation.outputs import Outputs, Wanted, depth_of, heads_of
from lightning_compress.distillation.soft_targets import SoftTargets, soft_target_loss
from lightning_compress.errors import InputError
from lightning_compress.models.structure import Units, linear_at, outputs_of
from lightning_compress.tasks.task import Distribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskLoss:
    """Learn the labels, where there are any.

    Args:
        weight: of the loss; two numbers: at the first and the last step.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Ramped = 0.1

    def __post_init__(self) -> None:
        check_ramp("losses.task.weight", self.weight, zero_at_one_end=True)


@dataclass(frozen=True)
class Losses:
    """The terms of a distillation, each with its weight; null leaves one out.

    Args:
        task: the labels.
        soft_targets: the teacher's predictions.
        hidden_states: the teacher's hidden states.
        attention_maps: where the teacher's heads look.
        relations: how like one another the teacher's tokens are.
        embeddings: the teacher's picture of a whole text.
    """

    task: TaskLoss | None = field(default_factory=TaskLoss)
    soft_targets: SoftTargets | None = field(default_factory=SoftTargets)
    hidden_states: HiddenStates | None = None
    attention_maps: AttentionMaps | None = None
    relations: Relations | None = None
    embeddings: Embeddings | None = None


class Objective(nn.Module):
    """The terms that a teacher gives, and the projections that are learned for them.

    Args:
        losses: which terms.
        student: a Hugging Face model; only its shape is looked at.
        teacher: another.
        distribution: how logits become predictions, see :class:`~lightning_compress.tasks.Task`.
        causal: tokens see only those before them.

    Raises:
        InputError: the terms do not suit these two.
    """

    def __init__(
        self,
        losses: Losses,
        student: "PreTrainedModel",
        teacher: "PreTrainedModel",
        distribution: Distribution,
        *,
        causal: bool,
    ) -> None:
        super().__init__()
        self.losses = losses
        self.distribution = distribution
        self.causal = causal
        self.teacher_depth = depth_of(teacher)
        self._check(student, teacher)
        widths = (int(student.config.hidden_size), int(teacher.config.hidden_size))
        self.hidden_projection = _projection(losses.hidden_states, *widths)
        self.embedding_projection = _projection(losses.embeddings, *widths)

    def _check(self, student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
        """Find out before the first step what would fail in it."""
        soft, maps = self.losses.soft_targets, self.losses.attention_maps
        if soft is not None and soft.hard and self.distribution == "continuous":
            raise InputError("losses.soft_targets.hard: numbers have no likeliest answer; drop it")
        self.wanted(depth_of(student))
        if maps is not None or self.losses.relations is not None:
            self._check_heads(student, teacher)
        rotated = any(
            name.endswith("rotary_emb")
            for model in (student, teacher)
            for name, _ in model.named_modules()
        )
        if maps is not None and rotated:
            raise InputError(
                "losses.attention_maps: this family turns queries and keys by their position, "
                "behind where they are looked at; use losses.relations"
            )

    def _check_heads(self, student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
        own, its = heads_of(student), heads_of(teacher)
        depth, relations = depth_of(student), self.losses.relations
        for one, other in self._pairs(self.losses.attention_maps, depth):
            check_heads(own[one % len(own)].count, its[other % len(its)].count)
        if relations is None or relations.heads is None:
            return
        for one, other in self._pairs(relations, depth):
            widths = _widths(student, own[one % len(own)]), _widths(teacher, its[other % len(its)])
            for width in (*widths[0], *widths[1]):
                check_split(width, relations.heads)

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of each term at a share of the run, in [0, 1]."""
        return {
            name: at(options.weight, progress)
            for name, options in vars(self.losses).items()
            if options is not None
        }

    def wanted(self, depth: int) -> tuple[Wanted, Wanted]:
        """What to look at in a student that has so many layers, and in its teacher.

        Raises:
            InputError: a map of layers names one that is not there.
        """
        states = self._pairs(self.losses.hidden_states, depth)
        attention = [
            *self._pairs(self.losses.attention_maps, depth),
            *self._pairs(self.losses.relations, depth),
        ]
        embedding = self.losses.embeddings is not None
        student, teacher = (
            Wanted(
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
        asked: Tensor | None,
    ) -> dict[str, Tensor]:
        """The terms by name, each a scalar, not weighted.

        Args:
            student: outputs of a batch; ``teacher``: of the same.
            teacher: outputs of the same batch.
            depth: layers of the student.
            progress: share of the run that is done, in [0, 1].
            asked: [B, S], true at the positions where a language model predicts.
        """
        terms: dict[str, Tensor] = {}
        if (soft := self.losses.soft_targets) is not None:
            assert isinstance(student.logits, Tensor)
            terms["soft_targets"] = soft_target_loss(
                student.logits if asked is None else student.logits[asked],
                teacher.logits if asked is None else teacher.logits[asked],
                self.distribution,
                temperature=at(soft.temperature, progress),
                hard=soft.hard,
            )
        if self.losses.hidden_states is not None:
            terms["hidden_states"] = _mean_over(
                self._pairs(self.losses.hidden_states, depth),
                lambda own, its: hidden_state_loss(
                    self.hidden_projection(student.hidden[own]), teacher.hidden[its], student.mask
                ),
            )
        if self.losses.attention_maps is not None:
            terms["attention_maps"] = _mean_over(
                self._pairs(self.losses.attention_maps, depth),
                lambda own, its: attention_map_loss(
                    *(student.attention[own], teacher.attention[its], student.mask),
                    causal=self.causal,
                ),
            )
        if (relations := self.losses.relations) is not None:
            terms["relations"] = _mean_over(
                self._pairs(relations, depth),
                lambda own, its: relation_loss(
                    *(student.attention[own], teacher.attention[its], student.mask),
                    causal=self.causal,
                    heads=relations.heads,
                ),
            )
        if self.losses.embeddings is not None:
            assert student.embedding is not None
            assert teacher.embedding is not None
            own = self.embedding_projection(student.embedding)
            terms["embeddings"] = embedding_loss(own, teacher.embedding)
        return terms

    def _pairs(
        self, term: HiddenStates | AttentionMaps | Relations | None, depth: int
    ) -> list[tuple[int, int]]:
        return [] if term is None else layer_pairs(term.layers, depth, self.teacher_depth)


def _widths(model: nn.Module, heads: Units) -> list[int]:
    """Of the queries, keys and values of a layer."""
    return [outputs_of(linear_at(model, name)) // heads.parts for name in heads.inputs]


def _projection(term: object, student: int, teacher: int) -> nn.Module:
    """From the student's width to the teacher's; at first it keeps the mean square."""
    if term is None or student == teacher:
        return nn.Identity()
    projection = nn.Linear(student, teacher, bias=False)
    nn.init.normal_(projection.weight, std=student**-0.5)
    return projection


def _mean_over(pairs: list[tuple[int, int]], loss: Callable[[int, int], Tensor]) -> Tensor:
    return torch.stack([loss(own, its) for own, its in pairs]).mean()
