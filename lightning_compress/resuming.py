"""Options of a run that is resumed from a checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_compress.errors import InputError


def require_same_options(
    owner: str, before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str] = ()
) -> None:
    """Refuse a resumed run whose options are not those of the checkpoint.

    Args:
        owner: what the options are those of, for the message.
        before: the options in the checkpoint.
        now: the options of the run.
        names: which of them; default: all.

    Raises:
        InputError: an option has changed.
    """
    compared = names or {**before, **now}
    changed = [name for name in compared if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"{owner}: the run began with {name}: {before.get(name)!r} and cannot go on with "
            f"{now.get(name)!r}. Resume it with the former, or start a new run, without ckpt_path, "
            "from a saved model"
        )
