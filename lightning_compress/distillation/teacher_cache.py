"""How a teacher's rows lie in Arrow: chunks to record batches, record batches to arrays, mapped.

What a teacher says about many examples, on disk: written once, mapped into memory by readers.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from lightning_compress.atomic import blaming, drafted, locked
from lightning_compress.errors import InputError

_BATCH_BYTES = 2**23  # chunks are gathered to record batches of about this size


@dataclass(frozen=True)
class Chunk:
    """Some examples, each of which comes in one chunk only.

    Args:
        ids: [B] int64.
        per_example: arrays [B, ...] by name.
        per_token: arrays [B, S, ...] by name, padded on the right; the padding is not stored.
        lengths: [B] tokens of each example; needed where there is something per token.
    """

    ids: NDArray[np.int64]
    per_example: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    per_token: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    lengths: NDArray[Any] | None = None


@dataclass(frozen=True)
class Field:
    """A named array of each example: ``shape``, or [tokens, *shape] where it is per token."""

    dtype: str
    shape: tuple[int, ...]
    per_token: bool


def fields_of(chunk: Chunk) -> dict[str, Field]:
    """The fields by name.

    Raises:
        ValueError: a field is neither whole numbers nor floats, or its name is there twice.
    """
    if twice := set(chunk.per_example) & set(chunk.per_token):
        raise ValueError(f"{sorted(twice)} are there both per example and per token")
    fields = {n: Field(a.dtype.name, a.shape[1:], False) for n, a in chunk.per_example.items()}
    fields |= {n: Field(a.dtype.name, a.shape[2:], True) for n, a in chunk.per_token.items()}
    for name, kind in fields.items():
        if np.dtype(kind.dtype).kind not in "iuf":
            raise ValueError(f"{name} holds {kind.dtype}: only integers and floats can be stored")
    return fields


def record_batches(chunks: Iterable[Chunk]) -> Iterator[tuple[dict[str, Field], pa.RecordBatch]]:
    """Few large record batches of many small chunks, each with the fields that all have.

    Raises:
        ValueError: a chunk has other fields than the first, or its arrays do not fit together.
    """
    fields: dict[str, Field] | None = None
    waiting: list[pa.RecordBatch] = []
    size = 0
    for chunk in chunks:
        found = fields_of(chunk)
        fields = found if fields is None else fields
        if found != fields:
            raise ValueError(f"a chunk has the fields {found}, the first one has {fields}")
        waiting.append(_record_batch(chunk, fields))
        size += waiting[-1].nbytes
        if size >= _BATCH_BYTES:
            yield fields, _joined(waiting)
            waiting, size = [], 0
    if waiting and fields is not None:
        yield fields, _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def _record_batch(chunk: Chunk, fields: dict[str, Field]) -> pa.RecordBatch:
    columns = [pa.array(np.asarray(chunk.ids, dtype=np.int64))]
    for name, kind in fields.items():
        if kind.per_token:
            columns.append(_ragged(name, chunk, kind))
        else:
            columns.append(_fixed(chunk.per_example[name], kind))
    return pa.record_batch(columns, names=["id", *fields])


def _fixed(values: NDArray[Any], kind: Field) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, _size(kind)) if kind.shape else flat


def _ragged(name: str, chunk: Chunk, kind: Field) -> pa.Array:
    if chunk.lengths is None:
        raise ValueError(f"{name} is per token: the chunk needs lengths")
    values, lengths = chunk.per_token[name], np.asarray(chunk.lengths, dtype=np.int64)
    tokens = values[np.arange(values.shape[1]) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if offsets[-1] != len(tokens) or (lengths < 0).any():
        raise ValueError(f"{name} has {values.shape[1]} tokens, the longest length says otherwise")
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), _fixed(tokens, kind))


def _size(kind: Field) -> int:
    return int(np.prod(kind.shape))


class Column:
    """A field of many examples, mapped from the columns of the record batches.

    Args:
        kind: what the field is.
        columns: its column in each record batch.
    """

    def __init__(self, kind: Field, columns: Iterable[Any]) -> None:
        self.kind = kind
        self._values: list[NDArray[Any]] = []
        self._offsets: list[list[int]] = []
        for column in columns:
            if kind.per_token:
                self._offsets.append(column.offsets.to_numpy().tolist())
                column = column.values
            flat = (column.values if kind.shape else column).to_numpy(zero_copy_only=True)
            self._values.append(flat.reshape(-1, *kind.shape))

    def take(self, places: list[tuple[int, int]], length: int | None) -> NDArray[Any]:
        """The rows at (record batch, row in it), copied; per token: [rows, length, *shape]."""
        if not self.kind.per_token:
            taken = np.empty((len(places), *self.kind.shape), dtype=self.kind.dtype)
            for i, (batch, row) in enumerate(places):
                taken[i] = self._values[batch][row]
            return taken
        spans = [self._offsets[batch][row : row + 2] for batch, row in places]
        longest = max((end - start for start, end in spans), default=0)
        if length is not None and length < longest:
            raise ValueError(f"an example has {longest} tokens, more than the length {length}")
        shape = (len(places), longest if length is None else length, *self.kind.shape)
        padded = np.zeros(shape, dtype=self.kind.dtype)
        for i, ((batch, _), (start, end)) in enumerate(zip(places, spans, strict=True)):
            padded[i, : end - start] = self._values[batch][start:end]
        return padded


_log = logging.getLogger(__name__)


_ROWS, _META, _FORMAT = "rows.arrow", "meta.json", 1


class TeacherStore:
    """Rows by example id; :func:`cached_store` makes it.

    It can be sent to other processes, which map the same file.

    Args:
        folder: where it lies.
        meta: what ``meta.json`` holds.
        mapped: the Arrow file.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], mapped: pa.MemoryMappedFile) -> None:
        self.folder = folder
        self.description: dict[str, Any] = meta["description"]
        self.fields = {
            name: Field(kind["dtype"], tuple(kind["shape"]), kind["per_token"])
            for name, kind in meta["fields"].items()
        }
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        ids = np.concatenate([batch.column(0).to_numpy() for batch in batches])
        self._starts = np.cumsum([0] + [batch.num_rows for batch in batches])
        self._order = np.argsort(ids)
        self.ids: NDArray[np.int64] = ids[self._order]  # sorted
        self._columns = {
            name: Column(kind, [batch.column(i) for batch in batches])
            for i, (name, kind) in enumerate(self.fields.items(), start=1)
        }

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.folder,)

    def rows(self, ids: ArrayLike, length: int | None = None) -> dict[str, NDArray[Any]]:
        """Everything about these examples, in this order, as copies that may be written to.

        Args:
            ids: [B], repeated or not.
            length: tokens to which what is per token is padded with zeros on the right; None: as
                many as the longest of these examples has.

        Returns:
            By name [B, *shape], or [B, length, *shape] where it is per token.

        Raises:
            InputError: an example is not in the store.
            ValueError: an example has more tokens than ``length``.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.ids, wanted), len(self) - 1)
        unknown = wanted[self.ids[found] != wanted]
        if len(unknown):
            raise InputError(
                f"{self.folder}: the teacher's cache knows nothing of {len(unknown)} of "
                f"{len(wanted)} examples, {unknown[0]} among them: it belongs to other data; "
                "remove the folder, and the next run makes it anew"
            )
        rows = self._order[found]
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True))
        return {name: column.take(places, length) for name, column in self._columns.items()}


def cached_store(
    folder: Path,
    examples: ArrayLike,
    write: Callable[[], Iterable[Chunk]],
    description: Mapping[str, Any] | None = None,
) -> TeacherStore:
    """Map the store in ``folder`` into memory; make it first if it is not there whole.

    It is checked to the last bit, made by one process at a time while others wait for it, and
    appears in one rename; a damaged one, or one of other examples, is replaced.

    Args:
        folder: named after everything that the rows depend on.
        examples: [N] ids of which the store must have each, and no other.
        write: asks the teacher, chunk by chunk; only called when the store has to be made.
        description: plain data to keep beside the rows; not compared.

    Raises:
        InputError: the folder cannot be written.
        ValueError: ``write`` gives other examples, one of them twice, or fields that do not fit.
    """
    expected = np.unique(np.asarray(examples, dtype=np.int64))
    if not len(expected):
        raise ValueError("there are no examples to ask the teacher about")
    plain = json.loads(json.dumps(dict(description or {})))
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _open(folder, expected)
    with locked(folder):
        try:
            return _open(folder, expected)  # another process may have made it meanwhile
        except (OSError, ValueError, KeyError, TypeError) as error:
            if folder.exists():
                _log.warning("The teacher's cache %s is made anew: %s", folder, error)
        with drafted(folder) as draft:
            _write(folder, draft, write(), plain)
            with blaming(folder):
                _open(draft, expected)
        return _open(folder)


def _open(folder: Path, expected: NDArray[np.int64] | None = None) -> TeacherStore:
    """The store in the folder, checked if the examples that it must have are given."""
    meta = json.loads((folder / _META).read_text())
    if meta["format"] != _FORMAT:
        raise ValueError(f"its format is {meta['format']}, not {_FORMAT}")
    mapped = pa.memory_map(str(folder / _ROWS))  # before it is read: what is checked is mapped
    if expected is None:
        return TeacherStore(folder, meta, mapped)
    if meta["seal"] != _seal(meta):
        raise ValueError(f"{_META} is damaged")
    if mapped.size() != meta["bytes"] or _sha256(folder / _ROWS) != meta["sha256"]:
        raise ValueError(f"{_ROWS} is damaged")
    store = TeacherStore(folder, meta, mapped)
    if not np.array_equal(store.ids, expected):
        raise ValueError(
            f"it holds {len(store)} examples, of which {np.isin(store.ids, expected).sum()} are "
            f"among the {len(expected)} expected"
        )
    return store


def _write(folder: Path, draft: Path, chunks: Iterable[Chunk], description: dict[str, Any]) -> None:
    """Fill the draft; only errors of its own files are blamed on the place, not the teacher's."""
    rows, examples, writer = draft / _ROWS, 0, None
    kinds: dict[str, Any] = {}
    with blaming(folder):
        sink = pa.OSFile(str(rows), "wb")
    with sink:
        for fields, batch in record_batches(chunks):
            with blaming(folder):
                if writer is None:
                    kinds = {name: asdict(kind) for name, kind in fields.items()}
                    writer = pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
            examples += batch.num_rows
        if writer is None:
            raise ValueError("the teacher said nothing about any example")
        with blaming(folder):
            writer.close()
    with blaming(folder):
        meta = {
            "format": _FORMAT,
            "examples": examples,
            "bytes": rows.stat().st_size,
            "sha256": _sha256(rows),
            "fields": kinds,
            "description": description,
        }
        meta["seal"] = _seal(meta)
        (draft / _META).write_text(json.dumps(meta, indent=1))


def _seal(meta: dict[str, Any]) -> str:
    rest = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
