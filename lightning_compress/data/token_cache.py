"""Token ids on disk: made once, mapped into memory by every process that reads them.

The folder of a cache is named by a hash of all that the tokens depend on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.atomic import own_folder
from lightning_compress.data.sources import Source
from lightning_compress.data.tokenizer import tokenizer_fingerprint, vocabulary_size
from lightning_compress.data.words import checked_words, encoded_words
from lightning_compress.errors import InputError
from lightning_compress.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 500  # texts that the tokenizer takes at a time
_QUIET = 3.0  # seconds of work before a progress bar appears

# One text's token ids and, for each of them, what ``TokenStore.segments`` says.
EncodedText = tuple[list[int], list[int] | None]

_DTYPES = ("uint16", "int32")
_TOKENS, _SEGMENTS, _OFFSETS, _META = "tokens.bin", "segments.bin", "offsets.npy", "meta.json"


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts, end to end.

    Args:
        tokens: [T] ids of all texts; 2 bytes each where the vocabulary allows.
        offsets: [N + 1] int64; text i is ``tokens[offsets[i]:offsets[i + 1]]``.
        segments: [T] which text of a pair a token belongs to; of lists of words, 1 at the first
            token of each word, else 0; None for single texts.
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


@dataclass(frozen=True)
class Encoding:
    """How texts become ids.

    Args:
        max_length: longest sequence, specials included; None: texts stay whole.
        special_tokens: put the tokenizer's own special tokens in.
        end: id to put behind each text that does not end with it.
        words: each text is a list of words.
    """

    max_length: int | None = None
    special_tokens: bool = True
    end: int | None = None
    words: bool = False


def tokenized(
    source: Source,
    columns: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    *,
    limit: int | None,
    cache_dir: Path,
) -> TokenStore:
    """Token ids of the source's rows, from the cache if they are there.

    Args:
        source: where the rows come from.
        columns: one text column, or two whose texts make a pair.
        tokenizer: its content counts for the cache, not its name.
        encoding: how texts become ids.
        limit: only so many rows from the top.
        cache_dir: folder of all caches.

    Raises:
        InputError: there are no rows, or a text is null or empty, or the cache cannot be written.
    """
    key = json.dumps(
        {
            "layout": 1,
            "source": source.fingerprint(columns),
            "columns": list(columns),
            "limit": limit,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "encoding": asdict(encoding),
        },
        sort_keys=True,
    )
    folder = cache_dir / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:32]
    return cached_tokens(
        folder,
        vocabulary_size(tokenizer),
        lambda: _encoded(source, columns, tokenizer, encoding, limit),
    )


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
    found = _open(folder, folder.name)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with own_folder(folder.parent, f".{folder.name}-") as draft:
            _write(draft, folder.name, vocabulary, encode())
            made = _open(draft, folder.name)  # stays mapped whatever becomes of the folder's name
            _put_in_place(draft, folder)
    except OSError as error:
        raise InputError(
            f"data.cache_dir: the tokens cannot be written to {folder.parent} ({error}): name a "
            "folder with room that can be written"
        ) from error
    assert made is not None
    return made


def _put_in_place(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if _open(folder, folder.name) is not None:
            return  # another process was faster
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        draft.rename(folder)


def _write(folder: Path, key: str, vocabulary: int, texts: Iterable[EncodedText]) -> None:
    dtype = np.dtype(_DTYPES[0] if vocabulary <= 2**16 else _DTYPES[1])
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
    (folder / _META).write_text(json.dumps({"key": key, "dtype": dtype.name, "paired": paired}))


def _open(folder: Path, key: str) -> TokenStore | None:
    """The store in the folder; None if there is none, or it is damaged, or another's."""
    try:
        meta = json.loads((folder / _META).read_text())
        offsets = np.load(folder / _OFFSETS)
        whole = offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets)
        if not whole or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError(f"{_OFFSETS} does not ascend from 0")
        if meta["key"] != key or meta["dtype"] not in _DTYPES:
            raise ValueError(f"{_META} is that of another cache")
        tokens = _mapped(folder / _TOKENS, meta["dtype"], int(offsets[-1]))
        segments = (
            _mapped(folder / _SEGMENTS, "uint8", int(offsets[-1])) if meta["paired"] else None
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return TokenStore(tokens, offsets, segments)


def _mapped(file: Path, dtype: str, length: int) -> NDArray[Any]:
    if file.stat().st_size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{file} is cut short")
    return np.memmap(file, dtype=dtype, mode="r", shape=(length,))


def _encoded(
    source: Source,
    columns: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    limit: int | None,
) -> Iterator[EncodedText]:
    table = source.read(columns, limit=limit)
    if table.num_rows == 0:
        raise InputError(f"{source.name} has no rows: data.path needs a file with rows in it")
    # If unset, tokenizers warns in every worker process that is forked after parallel tokenization.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    title = f"Tokenizing {Path(source.name).name}"
    with progress_bar(table.num_rows, shown=True, delay_s=_QUIET) as advance:
        for first in range(0, table.num_rows, _CHUNK):
            part = table.slice(first, _CHUNK)
            values = [part.column(c).to_pylist() for c in columns]
            if encoding.words:
                sentences = checked_words(values[0], columns[0], source.name, first)
                chunk: Iterator[EncodedText] = encoded_words(tokenizer, sentences, source.name)
            else:
                texts = [_texts(v, c, source, first) for v, c in zip(values, columns, strict=True)]
                chunk = _encode_chunk(tokenizer, texts, encoding)
            for row, (ids, segments) in enumerate(chunk, start=first + 1):
                if not ids:
                    raise InputError(
                        f"{source.name}: data.tokenizer finds no token in row {row}: take it out"
                    )
                yield ids, segments
            advance(title, part.num_rows)


def _texts(values: list[Any], column: str, source: Source, first: int) -> list[str]:
    for row, value in enumerate(values, start=first + 1):
        if not isinstance(value, str) or not value.strip():
            kind = "no text" if value is None or isinstance(value, str) else f"{value!r}, no text"
            raise InputError(
                f"{source.name}: row {row} has {kind} in column {column}: take it out or mend it "
                "(the first row behind a header is row 1)"
            )
    return values


def _encode_chunk(
    tokenizer: "PreTrainedTokenizerBase", texts: list[list[str]], encoding: Encoding
) -> Iterator[EncodedText]:
    paired = len(texts) == 2 and "token_type_ids" in tokenizer.model_input_names
    encoded = tokenizer(
        *texts,
        add_special_tokens=encoding.special_tokens,
        truncation=encoding.max_length is not None,
        max_length=encoding.max_length,
        return_attention_mask=False,
        return_token_type_ids=paired,
        verbose=False,
    )
    segments = encoded["token_type_ids"] if paired else [None] * len(texts[0])
    for ids, parts in zip(encoded["input_ids"], segments, strict=True):
        if encoding.end is not None and (not ids or ids[-1] != encoding.end):
            ids = [*ids, encoding.end]
        yield ids, parts
