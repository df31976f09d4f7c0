"""Files and folders that options name."""

import errno
from pathlib import Path

from lightning_compress.errors import InputError

_SHOWN = 80  # characters of a name that messages repeat from either end


def place_named(option: str, name: str) -> Path:
    """The file or folder of this name, whether it is there or not; ``~`` is the home folder.

    Raises:
        InputError: nothing can have this name.
    """
    if not name or "\0" in name:
        raise InputError(f"{option} is {name!r}: name a file or a folder")
    try:
        place = Path(name).expanduser()
        place.exists()
    except (OSError, RuntimeError) as error:
        too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        fault = "is too long for a file's name" if too_long else f"cannot be looked up ({error})"
        raise InputError(f"{option}: {_shown(name)} {fault}: name a file or a folder") from error
    return place


def require_file(option: str, place: Path) -> None:
    """See that there is a file at a place that :func:`place_named` has given.

    Raises:
        InputError: there is none, or a folder, a device or a pipe.
    """
    if place.is_dir():
        raise InputError(f"{option}: {place} is a folder: name a file in it")
    if place.exists() and not place.is_file():
        raise InputError(
            f"{option}: {place} is a device or a pipe, and a file is read more than once: write "
            "the rows to a file"
        )
    if not place.is_file():
        raise InputError(f"{option}: there is no file {place}")


def _shown(name: str) -> str:
    return name if len(name) <= 2 * _SHOWN else f"{name[:_SHOWN]}...{name[-_SHOWN:]}"
