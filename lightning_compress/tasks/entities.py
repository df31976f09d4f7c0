"""Entities in the tags of words, and how many of them a model finds whole.

Precision, recall and F1 count entities, of which the first word, the last word and the type are
right. Tjong Kim Sang, De Meulder, "Introduction to the CoNLL-2003 Shared Task: Language-Independent
Named Entity Recognition", 2003, https://aclanthology.org/W03-0419. Entities are read off the tags
as its program ``conlleval`` does, which understands IOB1, IOB2 (BIO) and IOBES alike; BILOU is
IOBES with other letters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_compress.data.entity_tags import OUTSIDE, are_entity_tags, parts_of
from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX

_SAME = {"L": "E", "U": "S"}  # BILOU's letters for the last and the single word of an entity


@dataclass(frozen=True)
class Entities:
    """The entities of some words, by their first word.

    Args:
        last: [W] place of the last word of the entity that starts here; -1 where none starts.
        kind: [W] number of the type of a word's tag; -1 outside.
    """

    last: Tensor
    kind: Tensor


def entities_of(prefixes: Tensor, kinds: Tensor, sentences: Tensor) -> Entities:
    """Read the entities off the tags of words, which stand sentence by sentence.

    Args:
        prefixes: [W] codes of the letters B, I, E and S; those of O are not used.
        kinds: [W] number of the type; -1 outside.
        sentences: [W] number of the sentence of each word.
    """
    begin, inside, end, single = (prefixes == ord(letter) for letter in "BIES")
    tagged = kinds >= 0
    same = torch.zeros_like(tagged)  # as the word before: one sentence and one type
    same[1:] = (sentences[1:] == sentences[:-1]) & (kinds[1:] == kinds[:-1]) & tagged[1:]
    closed = torch.zeros_like(tagged)  # the word before is the last of its entity
    closed[1:] = (end | single)[:-1]
    starts = tagged & (begin | single | ((inside | end) & (~same | closed)))
    continued = torch.zeros_like(tagged)  # the next word belongs to the same entity
    continued[:-1] = (tagged & ~starts)[1:]
    last = torch.full_like(kinds, -1)
    # Each entity has one first and one last word, in one order.
    last[starts] = (tagged & ~continued).nonzero()[:, 0]
    return Entities(last, kinds)


class EntityMetric(Metric):
    """Counts the entities of labels, of predictions and of both, over all batches.

    Args:
        names: of the tags in the order of the model's outputs, see :func:`are_entity_tags`.

    Raises:
        InputError: they are no such tags.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predicted: Tensor
    actual: Tensor
    common: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if not are_entity_tags(names):
            raise InputError(f"entities need tags such as O, B-LOC and I-LOC, not {list(names)}")
        found = [parts_of(name) for name in names]
        kinds = sorted({tag[1] for tag in found if tag})
        codes = [ord(_SAME.get(tag[0], tag[0]) if tag else OUTSIDE) for tag in found]
        numbers = [kinds.index(tag[1]) if tag else -1 for tag in found]
        self.register_buffer("prefixes", torch.tensor(codes), persistent=False)
        self.register_buffer("kinds", torch.tensor(numbers), persistent=False)
        for name in ("predicted", "actual", "common"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of sentences: tags [B, S] twice; words without a target, -100, are no words.

        A word is the token with its target, so a sentence's words follow one another.
        """
        words = targets != IGNORE_INDEX
        sentences = words.nonzero()[:, 0]
        mine, theirs = (self._entities(tags[words], sentences) for tags in (predictions, targets))
        starts, others = mine.last >= 0, theirs.last >= 0
        self.predicted += starts.sum()
        self.actual += others.sum()
        self.common += (starts & (mine.last == theirs.last) & (mine.kind == theirs.kind)).sum()

    def _entities(self, tags: Tensor, sentences: Tensor) -> Entities:
        prefixes, kinds = self.prefixes, self.kinds
        assert isinstance(prefixes, Tensor)
        assert isinstance(kinds, Tensor)
        return entities_of(prefixes[tags], kinds[tags], sentences)


class EntityPrecision(EntityMetric):
    """Fraction of the predicted entities that are right; zero without any."""

    def compute(self) -> Tensor:
        """Return the fraction over all batches."""
        return self.common / self.predicted.clamp(min=1)


class EntityRecall(EntityMetric):
    """Fraction of the labelled entities that are found; zero without any."""

    def compute(self) -> Tensor:
        """Return the fraction over all batches."""
        return self.common / self.actual.clamp(min=1)


class EntityF1(EntityMetric):
    """Harmonic mean of precision and recall over all entities (micro average)."""

    def compute(self) -> Tensor:
        """Return the F1 over all batches; zero without any entity."""
        return 2 * self.common / (self.predicted + self.actual).clamp(min=1)
