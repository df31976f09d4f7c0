"""Texts to token ids, once: the result lies on disk under a key of all that it depends on."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.data.sources import Source
from lightning_compress.data.token_store import EncodedText, TokenStore, cached_tokens
from lightning_compress.errors import InputError, first_line
from lightning_compress.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 500  # texts that the tokenizer takes at a time
_QUIET = 3.0  # seconds of work before a progress bar appears


@dataclass(frozen=True)
class Encoding:
    """How texts become ids.

    Args:
        max_length: longest sequence, specials included; None: texts stay whole.
        special_tokens: put the tokenizer's own special tokens in.
        end: id to put behind each text that does not end with it.
    """

    max_length: int | None = None
    special_tokens: bool = True
    end: int | None = None


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the Hub; without a padding token it pads with its end.

    Raises:
        InputError: there is no such tokenizer, or it has nothing to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(
            f"data.tokenizer: {name} is neither a folder with a tokenizer nor one that could be "
            f"loaded from the Hub ({first_line(error)}). Check the name and the "
            "network, or give a folder"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # What transformers makes of a folder with a model's configuration alone.
        raise InputError(
            f"data.tokenizer: {name} is a model without a tokenizer: name the tokenizer that it "
            "was trained with"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"data.tokenizer: {name} has neither a padding token nor an end-of-text token: add "
                "pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_for(path: str | None, name: str | None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of this name; the built-in corpus (no path) has one of its own.

    Raises:
        InputError: no tokenizer is named for other data, or it cannot be loaded.
    """
    if name is not None:
        return load_tokenizer(name)
    if path is not None:
        raise InputError(
            "data.tokenizer: name the tokenizer that the model was trained with, a folder or a "
            "Hub name; only the built-in corpus has one of its own"
        )
    from lightning_compress.data.builtin.corpus import builtin_tokenizer

    tokenizer: PreTrainedTokenizerBase = builtin_tokenizer()
    return tokenizer


def frame_of(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and behind a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return tuple(framed[:start]), tuple(framed[start + len(bare) :])


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
        folder, len(tokenizer), lambda: _encoded(source, columns, tokenizer, encoding, limit)
    )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of all that decides about a tokenizer's ids, not of its name or place."""
    digest = hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.truncation_side}".encode())
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        # Left over from the last call and set again by the next: not part of the tokenizer.
        backend.no_truncation()
        backend.no_padding()
        digest.update(backend.to_str().encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


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
    # Told, or it warns about every worker process that is forked after it ran in parallel.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    title = f"Tokenizing {Path(source.name).name}"
    with progress_bar(table.num_rows, shown=True, delay_s=_QUIET) as advance:
        for first in range(0, table.num_rows, _CHUNK):
            part = table.slice(first, _CHUNK)
            texts = [_texts(part.column(c).to_pylist(), c, source, first) for c in columns]
            rows = enumerate(_encode_chunk(tokenizer, texts, encoding), start=first + 1)
            for row, (ids, segments) in rows:
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
