"""Token ids on disk: written once, mapped into memory by every process that reads them."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import InputError

# One text's token ids and, for pairs of texts, which of the two each token belongs to.
EncodedText = tuple[list[int], list[int] | None]

_TOKENS, _SEGMENTS, _OFFSETS, _META = "tokens.bin", "segments.bin", "offsets.npy", "meta.json"


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, end to end.

    Args:
        tokens: [T] ids of all texts; 2 bytes each where the vocabulary allows.
        offsets: [N + 1] int64; text i is ``tokens[offsets[i]:offsets[i + 1]]``.
        segments: [T] which text of a pair a token belongs to; None for single texts.
    """

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    segments: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each text."""
        return np.diff(self.offsets)


def cached_tokens(
    folder: Path, vocabulary: int, encode: Callable[[], Iterable[EncodedText]]
) -> TokenStore:
    """Map the tokens in ``folder`` into memory; make them first if they are not there.

    A folder appears in one rename when it is whole, so that a killed process leaves nothing that
    could be taken for a cache, and processes that make the same one at a time do no harm.

    Args:
        folder: named after everything that the tokens depend on.
        vocabulary: ids are below this number.
        encode: makes the tokens, text by text.

    Raises:
        InputError: the folder cannot be written.
    """
    found = _open(folder)
    if found is not None:
        return found
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        _write(draft, vocabulary, encode())
        made = _open(draft)  # stays mapped whatever becomes of the folder's name
        _put_in_place(draft, folder)
    except OSError as error:
        raise InputError(
            f"data.cache_dir: the tokens cannot be written to {folder.parent} ({error}): name a "
            "folder with room that can be written"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    assert made is not None
    return made


def _put_in_place(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if _open(folder) is not None:
            return  # another process was faster
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        draft.rename(folder)


def _write(folder: Path, vocabulary: int, texts: Iterable[EncodedText]) -> None:
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)
    offsets = [0]
    paired = False
    with (folder / _TOKENS).open("wb") as tokens, (folder / _SEGMENTS).open("wb") as segments:
        for ids, parts in texts:
            tokens.write(np.asarray(ids, dtype=dtype).tobytes())
            if parts is not None:
                paired = True
                segments.write(np.asarray(parts, dtype=np.uint8).tobytes())
            offsets.append(offsets[-1] + len(ids))
    np.save(folder / _OFFSETS, np.asarray(offsets, dtype=np.int64))
    (folder / _META).write_text(json.dumps({"dtype": dtype.name, "paired": paired}))


def _open(folder: Path) -> TokenStore | None:
    """The store in the folder, or None if there is none or a part of it is missing."""
    try:
        meta = json.loads((folder / _META).read_text())
        offsets = np.load(folder / _OFFSETS)
        tokens = _mapped(folder / _TOKENS, meta["dtype"], int(offsets[-1]))
        segments = (
            _mapped(folder / _SEGMENTS, "uint8", int(offsets[-1])) if meta["paired"] else None
        )
    except (OSError, ValueError, EOFError, KeyError):
        return None
    return TokenStore(tokens, offsets, segments)


def _mapped(file: Path, dtype: str, length: int) -> NDArray[Any]:
    if file.stat().st_size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{file} is cut short")
    return np.memmap(file, dtype=dtype, mode="r", shape=(length,))
