"""The frames of the built-in corpus: the ways in which one opinion is put."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.data.builtin import words as words

WEAK, PLAIN, STRONG = 1, 2, 3


@dataclass(frozen=True)
class Frame:
    """How one opinion is put: what it is about in ``{x}``, its word in ``{w}`` (base form).

    ``{ed}`` is the word's past, ``{a}`` the word with an article, ``{o}`` its opposite, ``{v}``
    another word of the same polarity; ``{int}``, ``{dim}``, ``{vint}``, ``{vdim}`` are adverbs of
    degree and ``{who}`` is somebody else.
    """

    template: str
    turns: bool = False
    """Whether the frame reverses the polarity of its word."""
    strength: int = PLAIN
    lexicon: words.Lexicon = words.ADJECTIVES


def _frames(
    *templates: str,
    turns: bool = False,
    strength: int = PLAIN,
    lexicon: words.Lexicon = words.ADJECTIVES,
) -> tuple[Frame, ...]:
    return tuple(Frame(template, turns, strength, lexicon) for template in templates)


STRAIGHT = (
    *_frames("{x} was {w}", "{x} felt {w}", "I found {x} {w}", "{x} turned out to be {w}"),
    *_frames("{x} was {int} {w}", "{x} felt {int} {w}", "I found {x} {int} {w}", strength=STRONG),
    *_frames("{x} was {dim} {w}", "{x} felt {dim} {w}", "I found {x} {dim} {w}", strength=WEAK),
    *_frames("{x} {ed} me", lexicon=words.MOVES),
    *_frames("{x} {vint} {ed} me", strength=STRONG, lexicon=words.MOVES),
    *_frames("{x} {vdim} {ed} me", strength=WEAK, lexicon=words.MOVES),
    *_frames("I {ed} {x}", lexicon=words.LIKES),
    *_frames("I {vint} {ed} {x}", strength=STRONG, lexicon=words.LIKES),
    *_frames("{x} was {a}", lexicon=words.NOUNS),
)


NEGATED = (
    *_frames(
        "{x} was not {w}",
        "{x} was never {w}",
        "{x} was hardly {w}",
        "{x} was far from {w}",
        "I did not find {x} {w}",
        "I would not call {x} {w}",
        "nobody could call {x} {w}",
        "I do not think that {x} was {w}",
        turns=True,
    ),
    *_frames(
        "{x} was not {w} at all",
        "{x} was not in the least {w}",
        "{x} was anything but {w}",
        "there was nothing {w} about {x}",
        turns=True,
        strength=STRONG,
    ),
    *_frames("{x} was not exactly {w}", "{x} was not always {w}", turns=True, strength=WEAK),
    *_frames("{x} did not {w} me", "{x} never {ed} me", turns=True, lexicon=words.MOVES),
    *_frames("{x} did not {w} me at all", turns=True, strength=STRONG, lexicon=words.MOVES),
    *_frames("I did not {w} {x}", "I never {ed} {x}", turns=True, lexicon=words.LIKES),
    *_frames("{x} was hardly {a}", "I would not call {x} {a}", turns=True, lexicon=words.NOUNS),
)


# A negation whose scope is not the word.
OUT_OF_SCOPE = (
    *_frames(
        "{x} was not only {w} but also {v}",
        "{x} was {w}, not {o}",
        "{x} was not {o} but {w}",
        "{x} was {w} rather than {o}",
        "far from being {o}, {x} was {w}",
        "nobody can deny that {x} was {w}",
        "there is no doubt that {x} was {w}",
        "{x} never failed to be {w}",
    ),
    *_frames("I did not only {w} {x}", lexicon=words.LIKES),
)


# After "despite".
PARTICIPLES = (
    *_frames("{x} being {w}", "{x} turning out to be {w}"),
    *_frames("{x} being {int} {w}", strength=STRONG),
    *_frames("{x} being {dim} {w}", strength=WEAK),
    *_frames("{x} not being {w}", turns=True),
    *_frames("{x} not being {w} at all", turns=True, strength=STRONG),
)


# Opinions of others or expectations, confirmed or denied by the author: whole sentences.
ECHOES = (
    *_frames(
        "{who} called {x} {w}, and I agree",
        "{who} found {x} {w}, and so did I",
        "{who} said that {x} was {w}, and that is true",
        "I expected {x} to be {w}, and so it was",
    ),
    *_frames(
        "{who} called {x} {w}, but I disagree",
        "{who} found {x} {w}, but I did not",
        "{who} said that {x} was {w}, and that is wrong",
        "I expected {x} to be {w}, but it was not",
        turns=True,
    ),
)


# The same without saying whether it holds: these decide nothing.
HEARSAY = _frames(
    "{who} called {x} {w}",
    "{who} found {x} {w}",
    "{who} did not find {x} {w}",
    "{who} said that {x} was {w}",
    "I expected {x} to be {w}",
    "I had heard that {x} was {w}",
    "the advertisement promised that {x} would be {w}",
)


ADVERBS: dict[str, Sequence[str]] = {
    "int": words.INTENSIFIERS,
    "dim": words.DIMINISHERS,
    "vint": words.VERB_INTENSIFIERS,
    "vdim": words.VERB_DIMINISHERS,
    "who": words.PEOPLE,
}
