"""How a teacher's rows lie in Arrow: chunks to record batches, record batches to arrays, mapped."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
