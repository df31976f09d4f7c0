"""The outputs of a teacher for many examples, on disk: written once, memory-mapped by readers.

A store is one Arrow file of record batches, with a column for each field; readers take rows of it
by the id of the example without copying the rest. Its digest lies beside it.
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
    """The outputs for some examples; each example is in one chunk only.

    Args:
        ids: [B] int64.
        per_example: arrays [B, ...] by name.
        per_token: arrays [B, S, ...] by name, right-padded; the padding is not stored.
        lengths: [B] number of tokens of each example; needed where there are fields per token.
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
        ValueError: a field holds neither integers nor floats, or its name is used twice.
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
    """Gather many small chunks into few large record batches, each with the fields of all.

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
        raise ValueError(
            f"{name} has {values.shape[1]} tokens, which differs from the longest length"
        )
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), _fixed(tokens, kind))


def _size(kind: Field) -> int:
    return int(np.prod(kind.shape))


class Column:
    """A field of many examples, memory-mapped from the columns of the record batches.

    Args:
        kind: type and shape of the field.
        columns: the column of the field in each record batch.
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
_ROWS, _DIGEST = "rows.arrow", "rows.arrow.sha256"


class TeacherStore:
    """Outputs by example id; :func:`open_or_write` makes one.

    It can be pickled; other processes then map the same file.

    Args:
        folder: of the store.
        mapped: the Arrow file in it.
    """

    def __init__(self, folder: Path, mapped: pa.MemoryMappedFile) -> None:
        self.folder = folder
        reader = pa.ipc.open_file(mapped)
        self.fields = {
            name: Field(kind["dtype"], tuple(kind["shape"]), kind["per_token"])
            for name, kind in json.loads(reader.schema.metadata[b"fields"]).items()
        }
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
        """All fields of some examples, in the order of ``ids``, as writable copies.

        Args:
            ids: [B]; ids may repeat.
            length: number of tokens that fields per token are padded to, with zeros on the right;
                None: as many as the longest of these examples has.

        Returns:
            By name [B, *shape], or [B, length, *shape] for a field per token.

        Raises:
            InputError: an example is not in the store.
            ValueError: an example has more tokens than ``length``.
        """
        requested = np.asarray(ids, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.ids, requested), len(self) - 1)
        unknown = requested[self.ids[found] != requested]
        if len(unknown):
            raise InputError(
                f"{self.folder}: the teacher's cache does not hold {len(unknown)} of "
                f"{len(requested)} examples, {unknown[0]} among them: it belongs to other data; "
                "remove the folder, and the next run makes it anew"
            )
        rows = self._order[found]
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True))
        return {name: column.take(places, length) for name, column in self._columns.items()}


def open_or_write(
    folder: Path, examples: ArrayLike, write: Callable[[], Iterable[Chunk]]
) -> TeacherStore:
    """Map the store in ``folder`` into memory; write it first if it is not there or damaged.

    One process writes while others wait, and the store appears in one rename: it is whole or
    absent. A damaged store, or one of other examples, is replaced.

    Args:
        folder: named after everything that the outputs depend on.
        examples: [N] ids of the examples that the store must hold, and no other.
        write: runs the teacher, chunk by chunk; only called when the store has to be written.

    Raises:
        InputError: the folder cannot be written.
        ValueError: ``write`` gives other examples, one of them twice, or fields that do not fit.
    """
    expected = np.unique(np.asarray(examples, dtype=np.int64))
    if not len(expected):
        raise ValueError("there are no examples to run the teacher on")
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _open(folder, expected)
    with locked(folder):
        try:
            return _open(folder, expected)  # another process may have written it meanwhile
        except (OSError, ValueError, KeyError, TypeError) as error:
            if folder.exists():
                _log.warning("The teacher's cache %s is written again: %s", folder, error)
        with drafted(folder) as draft:
            _write(folder, draft, write())
            with blaming(folder):
                _open(draft, expected)
        return _open(folder)


def _open(folder: Path, expected: NDArray[np.int64] | None = None) -> TeacherStore:
    """The store in the folder; its digest and examples are checked if ``expected`` is given."""
    mapped = pa.memory_map(str(folder / _ROWS))  # before it is read: what is checked is mapped
    if expected is None:
        return TeacherStore(folder, mapped)
    if _sha256(folder / _ROWS) != (folder / _DIGEST).read_text():
        raise ValueError(f"{_ROWS} is damaged")
    store = TeacherStore(folder, mapped)
    if not np.array_equal(store.ids, expected):
        raise ValueError(
            f"it holds {len(store)} examples, of which {np.isin(store.ids, expected).sum()} are "
            f"among the {len(expected)} expected"
        )
    return store


def _write(folder: Path, draft: Path, chunks: Iterable[Chunk]) -> None:
    """Fill the draft; only errors of the file system name the folder, not errors of the teacher."""
    writer = None
    with blaming(folder):
        sink = pa.OSFile(str(draft / _ROWS), "wb")
    with sink:
        for fields, batch in record_batches(chunks):
            with blaming(folder):
                if writer is None:
                    kinds = json.dumps({name: asdict(kind) for name, kind in fields.items()})
                    writer = pa.ipc.new_file(sink, batch.schema.with_metadata({"fields": kinds}))
                writer.write_batch(batch)
        if writer is None:
            raise ValueError("the teacher gave no outputs for any example")
        with blaming(folder):
            writer.close()
    with blaming(folder):
        (draft / _DIGEST).write_text(_sha256(draft / _ROWS))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
