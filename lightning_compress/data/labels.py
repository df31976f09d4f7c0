"""What the labels mean: which problem they pose and which number stands for which label."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX, ProblemType

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LabelScheme:
    """How labels become targets.

    Integers and strings are classes, in ascending order; numbers with a fraction make a
    regression; lists of either make a multi-label problem.

    Args:
        problem_type: as Hugging Face names it.
        values: the labels of the source, at the place of their class; empty for a regression.
        names: what the classes are called; None for a regression.
    """

    problem_type: ProblemType
    values: tuple[Any, ...]
    names: tuple[str, ...] | None

    @property
    def one_class(self) -> bool:
        """Whether each example has exactly one class."""
        return self.problem_type == "single_label_classification"

    @property
    def num_labels(self) -> int:
        """Outputs that a model of this problem has."""
        return len(self.values) or 1

    def encode(self, labels: "pa.ChunkedArray", where: str) -> NDArray[Any]:
        """Targets of the rows: [N] int64, [N] float32 (regression) or [N, C] float32 (multi-label).

        Raises:
            InputError: a row has no label, or one that training does not know.
        """
        import pyarrow as pa
        from pyarrow import compute

        _refuse_missing(labels, where)
        if self.problem_type == "regression":
            try:
                return np.asarray(labels.cast(pa.float32()), dtype=np.float32)
            except pa.ArrowInvalid as error:
                raise InputError(f"{where}: not every data.label is a number: {error}") from error
        if self.one_class:
            return self._positions(labels, where)
        if not _is_list(labels.type):
            raise InputError(f"{where}: data.label holds no lists of labels, as in training")
        labels = labels.combine_chunks()
        targets = np.zeros((len(labels), self.num_labels), dtype=np.float32)
        rows = np.asarray(compute.list_parent_indices(labels))
        targets[rows, self._positions(compute.list_flatten(labels), where)] = 1
        return targets

    def unknown(self, rows: int) -> NDArray[Any]:
        """Targets of so many rows without labels, of ``encode``'s type: all -100, or all NaN."""
        if self.one_class:
            return np.full(rows, IGNORE_INDEX, dtype=np.int64)
        shape = (rows,) if self.problem_type == "regression" else (rows, self.num_labels)
        return np.full(shape, np.nan, dtype=np.float32)

    def _positions(self, labels: "pa.ChunkedArray", where: str) -> NDArray[np.int64]:
        import pyarrow as pa
        from pyarrow import compute

        known = pa.array(self.values)
        try:
            places = compute.index_in(labels.cast(known.type), value_set=known)
        except pa.ArrowInvalid:
            places = pa.nulls(len(labels), pa.int32())
        if places.null_count:
            strange = compute.unique(labels.filter(places.is_null())).to_pylist()
            hint = " (-1 marks rows without a label)" if -1 in strange else ""
            raise InputError(
                f"{where}: data.label holds {_some(strange)}{hint}, and training knows only "
                f"{_some(self.values)}: take the rows out, or name another file in data.splits"
            )
        return np.asarray(places, dtype=np.int64)


def label_scheme(
    labels: "pa.ChunkedArray", class_names: list[str] | None, where: str
) -> LabelScheme:
    """Read the problem off the training labels.

    Args:
        labels: the label column of the training rows.
        class_names: names of the classes 0, 1, ..., where the source declares them.
        where: what error messages call the source.

    Raises:
        InputError: there are no labels, or there is only one class.
    """
    import pyarrow as pa
    from pyarrow import compute

    if not len(labels):
        raise InputError(f"{where} has no rows: data.path needs a file with rows in it")
    _refuse_missing(labels, where)
    if pa.types.is_floating(labels.type):
        return LabelScheme("regression", (), None)
    problem: ProblemType = "single_label_classification"
    if _is_list(labels.type):
        problem = "multi_label_classification"
        labels = compute.list_flatten(labels)
    seen = sorted(compute.unique(labels).to_pylist())
    if len(seen) < 2:
        raise InputError(
            f"{where}: all rows have one and the same label, {_some(seen)}: there is nothing to "
            "learn. Check data.label, or raise data.limits.train"
        )
    if class_names is None:
        return LabelScheme(problem, tuple(seen), tuple(str(value) for value in seen))
    return LabelScheme(problem, tuple(range(len(class_names))), tuple(class_names))


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list or pa.types.is_fixed_size_list(kind))


def _refuse_missing(labels: "pa.ChunkedArray", where: str) -> None:
    from pyarrow import compute

    missing = np.flatnonzero(np.asarray(compute.is_null(labels, nan_is_null=True)))
    if len(missing):
        raise InputError(
            f"{where}: {len(missing)} of {len(labels)} rows have no label, the first of them row "
            f"{missing[0] + 1}: take them out, or name another file in data.splits"
        )


def _some(values: Any) -> str:
    shown = ", ".join(repr(value) for value in list(values)[:5])
    return shown + (", ..." if len(values) > 5 else "")
