"""What the labels mean: which problem they pose and which number stands for which label.

The one place where this is decided, for training and evaluation alike. A model that has been
trained says itself which of its outputs stands for which label; otherwise the training rows do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.label_column import LabelColumn, label_column, shown
from lightning_compress.data.label_form import (
    refuse_single_numbers,
    refuse_too_many,
    require_form,
)
from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX, ProblemType

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class KnownLabels:
    """What a model or the options say about the labels before the data are read.

    Args:
        problem_type: kind of labels; None: the data decide.
        num_labels: outputs of the model; None: as many as the data have.
        names: what the outputs of a trained model stand for, in their order; ``LABEL_0``, ... of a
            model that was never given names stand for the numbers from 0. None: the data decide.
    """

    problem_type: ProblemType | None = None
    num_labels: int | None = None
    names: tuple[str, ...] | None = None

    @property
    def numbered(self) -> bool:
        """Whether the names are no more than the numbers from 0."""
        names = list(self.names or ())
        forms = ("LABEL_{}", "{}")
        return any(names == [form.format(i) for i in range(len(names))] for form in forms)


@dataclass(frozen=True)
class LabelScheme:
    """How labels become targets.

    Args:
        problem_type: as Hugging Face names it.
        num_labels: outputs that a model of this problem has.
        names: what the classes are called, in their order; None for a regression.
        of_model: the names are those of a trained model; whole numbers that are not among them
            may be positions.
        vectors: whether the lists of a multi-label problem are vectors of zeros and ones, and not
            lists of labels; None: either, as their form says.
    """

    problem_type: ProblemType
    num_labels: int
    names: tuple[str, ...] | None
    of_model: bool = False
    vectors: bool | None = None

    @property
    def one_class(self) -> bool:
        """Whether each example has exactly one class."""
        return self.problem_type == "single_label_classification"

    def encode(
        self, labels: "pa.ChunkedArray", where: str, class_names: Sequence[str] | None = None
    ) -> NDArray[Any]:
        """Targets of the rows: [N] int64, [N] float32 (regression) or [N, C] float32 (multi-label).

        Args:
            labels: the label column of some rows.
            where: what error messages call the source.
            class_names: names of the classes 0, 1, ..., where the source declares them.

        Raises:
            InputError: a row has no label, or one that the scheme does not know.
        """
        column = label_column(labels, where)
        require_form(column, self.problem_type, where)
        if self.problem_type == "regression":
            if self.num_labels != 1:
                raise InputError(
                    f"{where}: data.label holds one number a text and the model has "
                    f"{self.num_labels} outputs: set model.num_labels: 1 to put an untrained head "
                    "in its place"
                )
            return np.asarray(column.values, dtype=np.float32)
        if self.one_class:
            return self._positions(column, where, class_names)
        assert column.lengths is not None
        if column.width is not None and column.width > 1 and not class_names and self.vectors != 0:
            return self._vectors(column, where)
        return self._lists(column, where, class_names)

    def unknown(self, rows: int) -> NDArray[Any]:
        """Targets of so many rows without labels, of ``encode``'s type: all -100, or all NaN."""
        if self.one_class:
            return np.full(rows, IGNORE_INDEX, dtype=np.int64)
        shape = (rows,) if self.problem_type == "regression" else (rows, self.num_labels)
        return np.full(shape, np.nan, dtype=np.float32)

    def describe(self) -> str:
        """One line for people."""
        if self.names is None:
            return "numbers (regression)"
        several = "" if self.one_class else ", any number of them a text"
        return f"{len(self.names)} classes ({shown(self.names)}){several}"

    def _vectors(self, column: LabelColumn, where: str) -> NDArray[np.float32]:
        if column.width != self.num_labels:
            raise InputError(
                f"{where}: data.label holds vectors of {column.width} zeros and ones, and there "
                f"are {self.num_labels} labels: write one number for each, or lists of their names"
            )
        return np.asarray(column.values, dtype=np.float32).reshape(-1, self.num_labels)

    def _lists(
        self, column: LabelColumn, where: str, class_names: Sequence[str] | None
    ) -> NDArray[np.float32]:
        assert column.lengths is not None
        if self.vectors:
            raise InputError(
                f"{where}: data.label holds no vectors of {self.num_labels} zeros and ones, as in "
                "training"
            )
        counts = np.zeros((len(column.lengths), self.num_labels), dtype=np.float32)
        rows = np.repeat(np.arange(len(column.lengths)), column.lengths)
        np.add.at(counts, (rows, self._positions(column, where, class_names)), 1)
        if counts.max(initial=0) > 1:
            raise InputError(
                f"{where}: row {int(counts.max(1).argmax()) + 1} names a label twice: write each "
                f"label once, or vectors of {self.num_labels} zeros and ones in every row"
            )
        return counts

    def _positions(
        self, column: LabelColumn, where: str, class_names: Sequence[str] | None
    ) -> NDArray[np.int64]:
        coded = column.values.dictionary_encode()
        seen = coded.dictionary.to_pylist()
        places = self._places(seen, class_names)
        strange = [value for value, place in zip(seen, places, strict=True) if place is None]
        if strange:
            hint = " (-1 marks rows without a label)" if -1 in strange else ""
            raise InputError(
                f"{where}: data.label holds {shown(strange)}{hint}, and {self._knows()}"
            )
        return np.array(places, dtype=np.int64).take(np.asarray(coded.indices))

    def _knows(self) -> str:
        known = shown(self.names or ())
        if not self.of_model:
            return (
                f"training knows only {known}: take the rows out, or name another file in "
                "data.splits"
            )
        if KnownLabels(names=self.names).numbered:
            return (
                f"the model's outputs are only numbered, from 0 to {self.num_labels - 1}: use "
                "these numbers, or give the outputs names in their order in model.config.id2label, "
                "or in id2label of the model's config.json"
            )
        return (
            f"the model knows only {known} (id2label in its config.json): use these names, or "
            f"whole numbers from 0 to {self.num_labels - 1} if they are no numbers themselves. "
            "model.config.id2label renames the outputs, and model.num_labels puts an untrained "
            "head for another number of labels in the place of this one"
        )

    def _places(
        self, seen: Sequence[Any], class_names: Sequence[str] | None
    ) -> Sequence[int | None]:
        """The position of each label; None for unknown ones."""
        assert self.names is not None
        readings = [[_name(value, class_names) for value in seen]]
        whole = all(isinstance(value, int) for value in seen)
        if whole:  # booleans are 0 and 1, and the other way round
            readings.append([_name(int(value), class_names) for value in seen])
        if all(value in (0, 1) for value in seen):
            readings.append([str(bool(value)) for value in seen])
        for fold in (str, str.casefold):
            table = {fold(name): place for place, name in enumerate(self.names)}
            if len(table) < len(self.names):
                break  # not all different
            for texts in readings:
                places = [table.get(fold(text)) for text in texts]
                if None not in places:
                    return places
        if self.of_model and whole and self._counts_from_0(class_names):
            return [int(value) if 0 <= value < self.num_labels else None for value in seen]
        exact = {name: place for place, name in enumerate(self.names)}
        return [exact.get(text) for text in readings[0]]

    def _counts_from_0(self, class_names: Sequence[str] | None) -> bool:
        """Whether whole numbers that are no names of the model are positions of its outputs."""
        assert self.names is not None
        if KnownLabels(names=self.names).numbered:
            return True
        return class_names is None and not any(name.lstrip("-").isdigit() for name in self.names)


def label_scheme(
    labels: "pa.ChunkedArray",
    class_names: Sequence[str] | None,
    where: str,
    known: KnownLabels = KnownLabels(),
) -> LabelScheme:
    """Read the problem off the training labels, as far as it is not known.

    Whole numbers and strings are classes, in ascending order; numbers with a fraction make a
    regression; lists of labels, or vectors of zeros and ones, a multi-label problem.

    Args:
        labels: the label column of the training rows.
        class_names: names of the classes 0, 1, ..., where the source declares them.
        where: what error messages call the source.
        known: what is known without the data.

    Raises:
        InputError: there are no labels, there is only one class, or they are not what is known.
    """
    column = label_column(labels, where)
    problem = known.problem_type or column.problem_type
    require_form(column, problem, where)
    if known.names is not None:
        return scheme_of_model(known, problem)
    if problem == "regression":
        return LabelScheme(problem, known.num_labels or 1, None)
    vectors = None
    if problem == "multi_label_classification":
        vectors = column.width is not None and class_names is None
        refuse_single_numbers(column, where, class_names)
    names = list(class_names or _learned(column, known.num_labels, vectors=bool(vectors)))
    if not len(column.values):
        raise InputError(
            f"{where}: no row has a label, every list is empty: check data.label, or raise "
            "data.limits.train"
        )
    if len(names) < 2:
        raise InputError(
            f"{where}: all rows have one and the same label, {shown(_values(column))}: there is "
            "nothing to learn. Check data.label, or raise data.limits.train"
        )
    if known.num_labels is None and not class_names:
        refuse_too_many(column, len(names), where)
    count = known.num_labels or len(names)
    if len(names) > count:
        raise InputError(
            f"the data have {len(names)} labels and model.num_labels is {count}: leave it out, or "
            "use data with fewer labels"
        )
    names += [f"LABEL_{place}" for place in range(len(names), count)]
    return LabelScheme(problem, count, tuple(names), vectors=vectors)


def scheme_of_model(known: KnownLabels, problem: ProblemType | None = None) -> LabelScheme:
    """The scheme of a trained model, whose names are known.

    Args:
        known: what the model says.
        problem: kind of labels, where the model does not say; default: one class an example.
    """
    assert known.names is not None
    problem = known.problem_type or problem or "single_label_classification"
    names = None if problem == "regression" else known.names
    return LabelScheme(problem, len(known.names), names, of_model=True)


def _learned(column: LabelColumn, count: int | None, *, vectors: bool) -> list[str]:
    """Names of the classes that training rows have; of whole numbers below ``count``, all."""
    if vectors:
        return [str(place) for place in range(column.width or 0)]
    seen = _values(column)
    if count is not None and all(type(value) is int and 0 <= value < count for value in seen):
        seen = list(range(count))
    return [str(value) for value in seen]


def _values(column: LabelColumn) -> list[Any]:
    return sorted(column.values.unique().to_pylist())


def _name(value: Any, class_names: Sequence[str] | None) -> str:
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return str(value)
