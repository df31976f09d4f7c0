"""Mistakes in a recipe or on the command line, each in one line."""

import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from lightning_compress.errors import InputError

_KEY = re.compile(r"Parser key \"(.+)\":")
_CLASS = re.compile(r"Problem with given class_path '(?:.*\.)?(.+)':")
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$")
_GIVEN = re.compile(r"Given value: (.*)$")
_LONGEST = 1000  # characters of a line
_HEADINGS = ("Does not validate against any", "Subtypes:", "Errors:")


def one_line(message: str) -> str:
    """The option, what is wrong with it and what it takes, out of jsonargparse's nested messages.

    They have a branch for every type that an option could have, of which the first one leads to
    the class that was meant.
    """
    place: list[str] = []
    expected: list[str] = []
    value: str | None = None
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        named = _KEY.match(line) or _CLASS.match(line)
        leaf, given = _EXPECTED.match(line), _GIVEN.match(line)
        if named and not expected:
            place.append(named[1])
            if rest := line[named.end() :].strip():
                return ": ".join([*_joined(place), rest])
        elif leaf and leaf[2] is not None:
            return _told(place, [leaf[1]], leaf[2])
        elif leaf:
            expected.append(leaf[1])
        elif given and expected:
            value = given[1]
            break
        elif line and not expected and not line.startswith(_HEADINGS):
            return ": ".join([*_joined(place), line])
    return _told(place, expected, value) if expected else message.splitlines()[0]


def as_line(message: str) -> str:
    """A message in one line of a bearable length, without what would control the terminal."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    )


def _told(place: list[str], expected: list[str], value: str | None) -> str:
    kinds = [re.sub(r"<class '(?:.*\.)?(.+?)'>", r"\1", kind) for kind in expected]
    kinds = [re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", kind) for kind in kinds]
    wanted = " or ".join(kinds).replace("NoneType", "null")
    return ": ".join([*_joined(place), f"it is {value}, and must be {wanted}"])


def _joined(place: list[str]) -> list[str]:
    """The option that names the class, and the option within the class."""
    return [place[0], ".".join(place[1:])] if len(place) > 1 else place


def refuse_nulls(option: str, value: Any) -> None:
    """Refuse ``null`` where an option of a class of this package needs a value.

    jsonargparse lets it through, and the class would fail on it somewhere.

    Args:
        option: what the value is called.
        value: of an option: a class with its options, a list of such, or anything else.

    Raises:
        InputError: an option is null.
    """
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, Namespace) and str(one.get("class_path")).startswith("lightning_compr"):
            module, _, name = one.class_path.rpartition(".")
            found = getattr(importlib.import_module(module), name)
            _refuse_nulls(f"{option}: {name}", _hints(found), one.get("init_args"))


def _refuse_nulls(place: str, hints: Mapping[str, Any], options: Namespace | None) -> None:
    for name, value in vars(options).items() if options else ():
        kinds = [hints.get(name, Any), *typing.get_args(hints.get(name, Any))]
        if value is None and Any not in kinds and NoneType not in kinds:
            raise InputError(f"{place}.{name} is null: give it a value, or leave the option out")
        for kind in kinds:
            if isinstance(value, Namespace) and dataclasses.is_dataclass(kind):
                _refuse_nulls(f"{place}.{name}", typing.get_type_hints(kind), value)


def _hints(owner: type) -> dict[str, Any]:
    """Types of the options of a class, and of the parents that it hands ``**options`` to."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        found |= dict(_own_hints(base))
    return found


def _own_hints(owner: type) -> Iterator[tuple[str, Any]]:
    made = vars(owner).get("__init__")
    with suppress(NameError, TypeError):  # of a class that others have written
        for name, hint in typing.get_type_hints(made).items():
            if typing.get_origin(hint) is typing.Unpack:
                yield from typing.get_type_hints(typing.get_args(hint)[0]).items()
            else:
                yield name, hint
