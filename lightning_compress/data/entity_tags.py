"""Tags that mark entities of several words: IOB1, IOB2 (BIO), IOBES and BILOU."""

import re
from collections.abc import Sequence

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])([-_].+)")


def parts_of(tag: str) -> tuple[str, str] | None:
    """The letter for the place in an entity, and the type with what divides them; None outside."""
    found = _TAG.fullmatch(tag)
    return None if found is None else (found[1], found[2])


def are_entity_tags(names: Sequence[str] | None) -> bool:
    """Whether all tags are ``O`` or a letter for the place in an entity and its type: ``B-LOC``."""
    tagged = [name for name in names or () if name != OUTSIDE]
    return bool(tagged) and all(parts_of(name) for name in tagged)


def completed(names: Sequence[str]) -> list[str]:
    """Tags of entities with those that training data lack by chance, in alphabetical order.

    Each type gets all letters that any has, and ``I`` where there is ``B``; ``O`` is always there.
    Other tags stay as they are.
    """
    if not are_entity_tags(names):
        return list(names)
    parts = [found for found in map(parts_of, names) if found]
    letters, types = ({part[side] for part in parts} for side in (0, 1))
    letters |= {"I"} if "B" in letters else set()
    return sorted({OUTSIDE} | {letter + kind for letter in letters for kind in types})
