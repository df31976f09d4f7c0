"""Rows that belong to queries: which rows are of one query, and how relevant each document is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.label_column import label_column
from lightning_compress.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

MOST_QUERIES = 2**24
"""Numbers of queries are in labels of float32, which tells no larger whole numbers apart."""


@dataclass(frozen=True)
class Queries:
    """The queries of some rows.

    Args:
        numbers: [N] number of each row's query, counted from 0.
        names: what each query is known by: its text or its id.
    """

    numbers: NDArray[np.int64]
    names: list[Any]


def queries_in(values: "pa.ChunkedArray", column: str, where: str) -> Queries:
    """Number the queries of some rows in the order in which they appear first.

    Args:
        values: texts of the queries, or their ids; equal ones are one query.
        column: its name.
        where: what error messages call the source.

    Raises:
        InputError: a row has none, they are lists, or there are too many.
    """
    import pyarrow as pa

    if pa.types.is_nested(values.type):
        raise InputError(
            f"{where}: the column {column} holds {values.type}: a query is told by a string or a "
            "number; name another column in data.query_id"
        )
    coded = pa.concat_arrays(values.chunks).dictionary_encode()
    names = coded.dictionary.to_pylist()
    numbers = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    blank = [number for number, name in enumerate(names) if isinstance(name, str) and not name]
    missing = np.flatnonzero(np.isin(numbers, [-1, *blank]))
    if len(missing):
        raise InputError(
            f"{where}: row {missing[0] + 1} has nothing in column {column}, which tells its query: "
            "mend it or take it out"
        )
    if len(names) > MOST_QUERIES:
        raise InputError(
            f"{where} has {len(names)} queries and can have at most {MOST_QUERIES}: lower "
            "data.limits, or divide the file"
        )
    return Queries(numbers, names)


def relevance_in(labels: "pa.ChunkedArray", highest: float, where: str) -> NDArray[np.float32]:
    """Relevance of some rows, in [0, 1].

    Args:
        labels: numbers or booleans.
        highest: the relevance that becomes 1.
        where: what error messages call the source.

    Raises:
        InputError: a row has none, or one that is negative or above the highest.
    """
    column = label_column(labels, where)
    if column.lengths is not None or column.is_text:
        raise InputError(
            f"{where}: data.label holds {column.values[0].as_py()!r}: the relevance of a document "
            "is one number; name another column"
        )
    values = np.asarray(column.values, dtype=np.float64)
    row = int(np.argmin(values))
    if values[row] < 0:
        raise InputError(
            f"{where}: row {row + 1} has the relevance {values[row]:g}, and 0 is the least: take "
            "rows without a relevance out, and write 0 for documents that are not relevant"
        )
    row = int(np.argmax(values))
    if values[row] > highest:
        raise InputError(
            f"{where}: row {row + 1} has the relevance {values[row]:g}, and the highest is "
            f"{highest:g}: set data.highest_relevance to the highest grade, by which all are "
            "divided"
        )
    return np.asarray(values / highest, dtype=np.float32)


def require_ranking(queries: NDArray[np.int64], relevance: NDArray[np.float32], where: str) -> str:
    """See that an order of the documents can be better than another.

    Args:
        queries: [N] number of each row's query.
        relevance: [N] in [0, 1].
        where: what messages call the rows.

    Returns:
        What is to be known of queries that say nothing about a model; empty if there are none.

    Raises:
        InputError: no document is relevant, or no query has documents of different relevance.
    """
    if not relevance.any():
        raise InputError(
            f"{where}: no document is relevant to its query, every data.label is 0, so there is "
            "nothing to measure: give rows with a relevance above 0"
        )
    _, places = np.unique(queries, return_inverse=True)
    least, most = np.ones(places.max() + 1), np.zeros(places.max() + 1)
    np.minimum.at(least, places, relevance)
    np.maximum.at(most, places, relevance)
    if not (least < most).any():
        raise InputError(
            f"{where}: no query has documents of different relevance ({len(relevance)} rows of "
            f"{len(least)} queries), so every order is right: give each query relevant and other "
            "documents, name the column that tells which rows are of one query in data.query_id, "
            "or raise data.validation_fraction or data.limits"
        )
    none, alike = int((most == 0).sum()), int(((least == most) & (most > 0)).sum())
    told = [
        *([f"{none} have no relevant document and are not counted"] if none else []),
        *([f"{alike} are right in any order"] if alike else []),
    ]
    return f"{where}: of {len(least)} queries {', '.join(told)}." if told else ""
