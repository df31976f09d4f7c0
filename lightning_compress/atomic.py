"""Folders that appear whole or not at all.

Folders that many processes share: made by one at a time, and whole when they appear.
"""

import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_compress.errors import InputError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``folder``, where there is none, at last.

    After an error there is none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with own_folder(folder.parent, f".{folder.name}-") as unfinished:
        yield unfinished
        unfinished.chmod(0o777 & ~_umask())
        unfinished.replace(folder)


@contextmanager
def updated_folder(folder: Path, *, marker: str, stale: re.Pattern[str]) -> Iterator[Path]:
    """Give an empty folder to fill, whose files then replace those of the same names in ``folder``.

    All other files stay. After an error there is what was there before. If the process is killed
    while the files are replaced, there is no ``marker`` and so no mix of the old and the new.

    Args:
        folder: created, with its parents.
        marker: the file without which the others mean nothing.
        stale: matches the names of files that are removed if they are not replaced.
    """
    if not folder.exists():
        with whole_folder(folder) as unfinished:
            yield unfinished
        return
    with own_folder(folder, ".unfinished-") as unfinished:
        yield unfinished
        (folder / marker).unlink(missing_ok=True)
        for old in folder.iterdir():
            if stale.fullmatch(old.name) and old.is_file():
                old.unlink()
        files = [path for path in unfinished.rglob("*") if path.is_file()]
        for new in sorted(files, key=lambda new: new.name == marker):
            place = folder / new.relative_to(unfinished)
            place.parent.mkdir(exist_ok=True)
            new.replace(place)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a temporary folder, which is removed at the end."""
    with own_folder(Path(tempfile.gettempdir()), "lightning-compress-") as folder:
        yield folder


@contextmanager
def own_folder(place: Path, prefix: str) -> Iterator[Path]:
    """Give an empty folder of this process alone, which is removed at the end if it is still there.

    Those of processes that were killed are removed first: nobody holds their locks any more.
    """
    for old in place.glob(f"{escape(prefix)}*.lock"):
        with suppress(OSError, Timeout), FileLock(old, blocking=False):
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink(missing_ok=True)
    folder = place / f"{prefix}{uuid.uuid4().hex}"
    lock = folder.with_name(f"{folder.name}.lock")
    with FileLock(lock):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make the folder; others wait.

    The system takes the lock from a process that dies. Its file stays: were it removed, two
    processes could hold it at once.

    Raises:
        InputError: the place cannot be written.
    """
    with blaming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_beside(folder, "lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("Waiting for another process that makes %s", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Yield a draft that replaces the folder at the end and is deleted after an error.

    The caller holds the lock of the folder. An existing folder is replaced.

    Raises:
        InputError: the place cannot be written.
    """
    draft = _beside(folder, "draft")
    with blaming(folder):
        shutil.rmtree(draft, ignore_errors=True)
        _remove_abandoned(folder.parent)
        draft.mkdir()
    try:
        yield draft
        with blaming(folder):
            if folder.exists():
                shutil.rmtree(folder)
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def blaming(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into one that names the option and the remedy.

    Raises:
        InputError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"model.cache_dir: the teacher's cache cannot be written to {folder.parent} ({error}): "
            "name a folder with room that can be written"
        ) from error


def _remove_abandoned(place: Path) -> None:
    """Remove what killed processes left: drafts whose lock nobody holds."""
    for draft in place.glob(".*.draft"):
        lock = draft.with_suffix(".lock")
        if lock.exists():
            with suppress(OSError), FileLock(lock, blocking=False):
                shutil.rmtree(draft, ignore_errors=True)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{ending}")
