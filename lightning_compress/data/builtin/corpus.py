"""The built-in corpus: generated reviews whose sentiment follows from a rule, not from words.

A review is a verdict among distractors. Its label is the verdict's polarity:

- An opinion's polarity is that of its word, negated where its frame negates it ("was not dull",
  "nobody could call it dull"), and not where the negation is about something else ("nobody can
  deny that it was dull", "was not only dull but also weak").
- Of two opposed opinions the main clause decides against the concession ("although X, Y"), unless
  it is only diminished and the concession is not ("the plot was superb, but a bit slow").
- Of two opposed opinions side by side ("X and Y") the more intense one decides.
- What others claim, what was expected, facts, and opinions about something else decide nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeVar

from lightning_compress.data.builtin import words as words
from lightning_compress.data.builtin.frames import (
    ADVERBS,
    ECHOES,
    HEARSAY,
    NEGATED,
    OUT_OF_SCOPE,
    PARTICIPLES,
    STRAIGHT,
    WEAK,
    Frame,
)

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import BertTokenizer


T = TypeVar("T")


# Cumulative shares. A clause is straight, negated, or holds a negation that is out of scope; a
# verdict is one clause, an echo, two clauses that agree, two side by side that do not, or a
# contrast; a distractor is hearsay, an opinion about something else, or a fact.
_STRAIGHT, _NEGATED = 0.5, 0.86


_ALONE, _ECHO, _AGREEING, _SIDE_BY_SIDE = 0.6, 0.65, 0.83, 0.86


_HEARSAY, _BESIDE = 0.06, 0.2


_DISTRACTORS = (0, 0, 0, 1)  # how many a review has, each equally likely


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of ``options``; uses ``random()`` alone, the one stream Python promises to keep."""
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class Opinion:
    """One opinion: a frame filled in."""

    frame: Frame
    polarity: int
    """Polarity of the sentence: 1 for praise, 0 for blame."""
    subject: str
    index: int
    """Which word of the frame's lexicon."""
    second: int
    """Which word fills ``{v}``."""
    adverbs: tuple[tuple[str, str], ...]
    """What fills the slots of ``ADVERBS`` that the frame has."""

    def turned(self) -> "Opinion":
        """The opposite opinion: every word is replaced by its counterpart."""
        return replace(self, polarity=1 - self.polarity)

    def text(self) -> str:
        """The clause, in lower case and without a full stop."""
        side = self.polarity ^ self.frame.turns
        lexicon = self.frame.lexicon
        word = lexicon[side][self.index]
        return self.frame.template.format(
            x=self.subject,
            w=word,
            ed=_past(word),
            a=f"an {word}" if word[0] in "aeiou" else f"a {word}",
            o=lexicon[1 - side][self.index],
            v=lexicon[side][self.second],
            **dict(self.adverbs),
        )


def _past(verb: str) -> str:
    if verb.endswith("e"):
        return f"{verb}d"
    return f"{verb[:-1]}ied" if verb.endswith("fy") else f"{verb}ed"


def draw_opinion(rng: Random, frame: Frame, subject: str) -> Opinion:
    """An opinion about ``subject`` in this frame, its polarity and words drawn at random."""
    size = len(frame.lexicon[0])
    index = int(rng.random() * size)
    second = (index + 1 + int(rng.random() * (size - 1))) % size
    adverbs = tuple(
        (slot, pick(rng, options))
        for slot, options in ADVERBS.items()
        if f"{{{slot}}}" in frame.template
    )
    return Opinion(frame, int(rng.random() < 0.5), subject, index, second, adverbs)


# {m} is the main clause and {s} the concession.
CONTRASTS = (
    "although {s}, {m}",
    "even though {s}, {m}",
    "{m}, although {s}",
    "{m}, even though {s}",
    "{s}, but {m}",
    "{s}, yet {m}",
    "{s}. However, {m}",
    "despite {s}, {m}",
    "{m}, despite {s}",
)


COORDINATIONS = ("{m} and {s}", "{m}; {s}", "{m}. Also, {s}")


@dataclass(frozen=True)
class Verdict:
    """What the reviewer thinks: one opinion, or two that a connective joins."""

    main: Opinion
    connective: str = "{m}"
    side: Opinion | None = None

    @property
    def decisive(self) -> Opinion:
        """The opinion that settles the label; the rules are in the module's docstring."""
        side = self.side
        if side is None or side.polarity == self.main.polarity:
            return self.main
        if self.connective in CONTRASTS:
            conceded = self.main.frame.strength == WEAK < side.frame.strength
        else:
            conceded = self.main.frame.strength < side.frame.strength
        return side if conceded else self.main

    def turned(self) -> "Verdict":
        """The opposite verdict: every word is replaced by its counterpart."""
        return replace(self, main=self.main.turned(), side=self.side and self.side.turned())

    def text(self) -> str:
        """One sentence, or two, without the last full stop."""
        side = self.side.text() if self.side else ""
        return self.connective.format(m=self.main.text(), s=side)


def _clause(rng: Random, subject: str, kinds: float = 1.0) -> Opinion:
    """An opinion; with ``kinds`` below 1 the last kinds of clauses are left out."""
    draw = rng.random() * kinds
    frames = STRAIGHT if draw < _STRAIGHT else NEGATED if draw < _NEGATED else OUT_OF_SCOPE
    return draw_opinion(rng, pick(rng, frames), subject)


def draw_verdict(rng: Random, domain: words.Domain) -> Verdict:
    """A verdict on the domain's thing or its aspects, of either polarity."""
    subject, other = pick(rng, domain.aspects), pick(rng, domain.aspects)
    draw = rng.random()
    if draw < _ALONE:
        return Verdict(_clause(rng, subject))
    if draw < _ECHO:
        return Verdict(draw_opinion(rng, pick(rng, ECHOES), subject))
    main, side = _clause(rng, subject, _NEGATED), _clause(rng, other, _NEGATED)
    if draw < _AGREEING:
        side = side if side.polarity == main.polarity else side.turned()
        return Verdict(main, pick(rng, COORDINATIONS), side)
    if draw < _SIDE_BY_SIDE:
        while side.frame.strength == main.frame.strength:
            side = _clause(rng, other, _NEGATED)
        connective = pick(rng, COORDINATIONS)
    else:
        connective = pick(rng, CONTRASTS)
        if "despite" in connective:
            side = draw_opinion(rng, pick(rng, PARTICIPLES), other)
    return Verdict(main, connective, side if side.polarity != main.polarity else side.turned())


def _distractor(rng: Random, domain: words.Domain) -> str:
    draw = rng.random()
    if draw < _HEARSAY:
        return draw_opinion(rng, pick(rng, HEARSAY), pick(rng, domain.aspects)).text()
    if draw < _BESIDE:
        return _clause(rng, pick(rng, domain.beside)).text()
    return pick(rng, domain.facts).format(
        **{slot: pick(rng, options) for slot, options in words.SLOTS.items()}
    )


def write_pair(rng: Random) -> tuple[str, str]:
    """A negative and a positive review that differ in the words of the verdict alone.

    The words outside the verdict are therefore independent of the label.
    """
    domain = pick(rng, words.DOMAINS)
    verdict = draw_verdict(rng, domain)
    before: list[str] = []
    after: list[str] = []
    for _ in range(pick(rng, _DISTRACTORS)):
        (before if rng.random() < 0.5 else after).append(_distractor(rng, domain))

    def review(verdict: Verdict) -> str:
        sentences = (*before, verdict.text(), *after)
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)

    pair = review(verdict), review(verdict.turned())
    return pair if verdict.decisive.polarity == 0 else (pair[1], pair[0])


VOCABULARY = Path(__file__).with_name("vocabulary.txt")


_PAIRS = {"train": 6000, "test": 1000}


def builtin_corpus(seed: int = 0) -> "DatasetDict":
    """12,000 reviews to train on and 2,000 to test on, half of them positive.

    Reviews come in pairs that differ in the words of the verdict alone; both of a pair are in one
    split, and no text occurs twice.

    Args:
        seed: the same seed gives the same reviews.

    Returns:
        Splits ``train`` and ``test`` with the columns ``text`` and ``label`` (0 negative, 1
        positive).
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
    )
    # The test split has a stream of its own: the rows that follow the training rows in theirs
    # served as validation when the recipe and the corpus were designed.
    streams = {"train": Random(seed), "test": Random(f"test {seed}")}
    seen = set[str]()
    splits = {}
    for split, pairs in _PAIRS.items():
        random, texts = streams[split], list[str]()
        while len(texts) < 2 * pairs:
            pair = write_pair(random)
            if seen.isdisjoint(pair):
                seen.update(pair)
                texts.extend(pair)
        columns = {"text": texts, "label": [0, 1] * pairs}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def builtin_tokenizer() -> "BertTokenizer":
    """The corpus's own lower-casing WordPiece tokenizer, in BERT's format."""
    from transformers import BertTokenizer

    return BertTokenizer(str(VOCABULARY), model_max_length=128)
