"""A column of labels in one form, whatever its source wrote."""

from dataclasses import dataclass
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import InputError
from lightning_compress.types import ProblemType

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LabelColumn:
    """The labels of some rows.

    Args:
        values: [V] int64, float64 (at least one has a fraction), bool or string; where labels are
            lists, their elements one after another.
        lengths: [N] elements of each row's list; None where labels are no lists.
    """

    values: "pa.Array"
    lengths: NDArray[np.int64] | None

    @property
    def problem_type(self) -> ProblemType:
        """The problem that labels of this form pose, unless a model or an option says otherwise."""
        if self.lengths is not None:
            return "multi_label_classification"
        return "regression" if self.has_fractions else "single_label_classification"

    @property
    def has_fractions(self) -> bool:
        """Whether they are numbers of which one at least is not whole."""
        import pyarrow as pa

        return bool(pa.types.is_floating(self.values.type))

    @property
    def is_text(self) -> bool:
        """Whether they are strings that are no numbers."""
        import pyarrow as pa

        return bool(pa.types.is_string(self.values.type))

    @property
    def width(self) -> int | None:
        """Length of vectors of zeros and ones, if that is what the lists are."""
        if self.lengths is None or not len(self.values) or self.is_text or self.has_fractions:
            return None
        numbers = np.asarray(self.values)
        alike = self.lengths.min() == self.lengths.max()
        return int(self.lengths[0]) if alike and np.isin(numbers, (0, 1)).all() else None


def label_column(labels: "pa.ChunkedArray", where: str) -> LabelColumn:
    """Bring a column of labels into one form.

    Strings are numbers where all of them are, numbers are whole numbers where all of them are, so
    that ``1``, ``1.0``, ``"1"`` and ``" 1"`` are one label in files of every format.

    Args:
        labels: as read.
        where: what error messages call the source.

    Raises:
        InputError: there are no rows, a row has no label, or the labels are of another type.
    """
    import pyarrow as pa
    from pyarrow import compute

    if not len(labels):
        raise InputError(f"{where} has no rows: data.path needs a file with rows in it")
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if not is_list(labels.type):
        values = _plain(labels, where)
        _refuse_missing(values, where)
        return LabelColumn(_one_array(values), None)
    _refuse_missing(labels, where)
    values = _plain(compute.list_flatten(labels), where)
    if values.null_count:
        raise InputError(f"{where}: a list in data.label holds an empty label: take it out")
    lengths = np.asarray(compute.list_value_length(labels), dtype=np.int64)
    return LabelColumn(_one_array(values), lengths)


def columns_as_lists(table: "pa.Table", where: str) -> "pa.ChunkedArray":
    """Turn several columns, each of which says whether one label holds, into one column of lists.

    Args:
        table: the label columns, of zeros and ones, or of booleans.
        where: what error messages call the source.

    Returns:
        For each row the positions of the columns whose label holds.

    Raises:
        InputError: a value is missing, or is something else.
    """
    import pyarrow as pa
    from pyarrow import compute

    holds = []
    for name in table.column_names:
        values = label_column(table.column(name), f"{where}, column {name!r}").values
        if {str(value).lower() for value in values.unique().to_pylist()} <= {"true", "false"}:
            values = compute.equal(compute.utf8_lower(values.cast(pa.string())), "true")
        strange = [value for value in values.unique().to_pylist() if value not in (0, 1)]
        if strange:
            hint = " (-1 marks rows without a label)" if -1 in strange else ""
            raise InputError(
                f"{where}: column {name!r} of data.label holds {shown(strange)}{hint}: each of "
                "several label columns holds 0 or 1 in every row"
            )
        holds.append(np.asarray(values.to_numpy(zero_copy_only=False), dtype=bool))
    rows, positions = np.nonzero(np.stack(holds, axis=1))
    offsets = np.searchsorted(rows, np.arange(table.num_rows + 1))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(positions))
    return pa.chunked_array([lists])


def shown(values: Any, most: int = 5) -> str:
    """The first of some labels or names, for messages."""
    texts = ", ".join(shortened(value) for value in list(values)[:most])
    return texts + (", ..." if len(values) > most else "")


def is_list(kind: "pa.DataType") -> bool:
    """Whether each value of a type is a list."""
    import pyarrow as pa

    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed or pa.types.is_fixed_size_list(kind))


def _one_array(values: "pa.ChunkedArray") -> "pa.Array":
    import pyarrow as pa

    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _plain(values: "pa.ChunkedArray", where: str) -> "pa.ChunkedArray":
    """As int64, float64, bool or string; empty strings and NaN become null."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_boolean(kind):
        return values
    if pa.types.is_null(kind):
        return values.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        values = _narrowed(values.cast(pa.string()), where)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(
            f"{where}: data.label holds {kind}: labels are numbers, strings, booleans, or lists of "
            "these; name another column"
        )
    return values if pa.types.is_string(values.type) else _numbers(values, where)


def _narrowed(texts: "pa.ChunkedArray", where: str) -> "pa.ChunkedArray":
    """Strings without blanks around them, or numbers where every one of them is a number."""
    import pyarrow as pa
    from pyarrow import compute

    texts = compute.utf8_trim_whitespace(texts)
    texts = compute.if_else(compute.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    if compute.all(compute.match_substring_regex(texts, r"^[\[({].*[\])}]$")).as_py():
        raise InputError(
            f"{where}: data.label holds lists written as text, such as {texts[0].as_py()!r}: write "
            "a jsonl or parquet file, whose cells can be lists, or one column per label"
        )
    for kind in (pa.int64(), pa.float64()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return texts


def _numbers(values: "pa.ChunkedArray", where: str) -> "pa.ChunkedArray":
    """int64 where all are whole, else float64; NaN becomes null."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64())
        values = values.cast(pa.float64())
        missing = compute.is_null(values, nan_is_null=True)
        values = compute.if_else(missing, pa.scalar(None, pa.float64()), values)
        whole = compute.all(compute.equal(compute.floor(values), values)).as_py()
        if compute.any(compute.is_inf(values)).as_py():
            raise InputError(f"{where}: data.label holds an infinite number: take the row out")
        return values.cast(pa.int64()) if whole else values
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{where}: data.label holds a number that is too large: {error}"
        ) from error


def _refuse_missing(labels: "pa.ChunkedArray", where: str) -> None:
    from pyarrow import compute

    missing = np.flatnonzero(np.asarray(compute.is_null(labels)))
    if len(missing):
        raise InputError(
            f"{where}: {len(missing)} of {len(labels)} rows have no label, the first of them row "
            f"{missing[0] + 1}: take them out, or name another file in data.splits"
        )
