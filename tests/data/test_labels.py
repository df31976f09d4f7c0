"""What labels of every kind become: the table of docs/data.md."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_compress.data.labels import KnownLabels, label_scheme, scheme_of_model
from lightning_compress.errors import InputError
from lightning_compress.types import ProblemType

CLASSES: ProblemType = "single_label_classification"
SEVERAL: ProblemType = "multi_label_classification"
NUMBERS: ProblemType = "regression"


def column(values: list[Any], kind: Any = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "names", "targets"),
    [
        ([1, 0, 1], ["0", "1"], [1, 0, 1]),
        ([-1, 1, 1], ["-1", "1"], [0, 1, 1]),
        ([5, 1, 10], ["1", "5", "10"], [1, 0, 2]),
        (["5", "1", "10"], ["1", "5", "10"], [1, 0, 2]),
        ([1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
        (["1.0", "0.0", "2.0"], ["0", "1", "2"], [1, 0, 2]),
        ([2**60, 3], ["3", str(2**60)], [1, 0]),
        (["pos", "neg"], ["neg", "pos"], [1, 0]),
        ([" pos", "neg ", "pos"], ["neg", "pos"], [1, 0, 1]),
        (["1", "x"], ["1", "x"], [0, 1]),
        ([True, False], ["False", "True"], [1, 0]),
        # Lists of labels, and vectors of zeros and ones.
        ([["b"], ["a", "c"], []], ["a", "b", "c"], [[0, 1, 0], [1, 0, 1], [0, 0, 0]]),
        ([[3], [0, 2], []], ["0", "2", "3"], [[0, 0, 1], [1, 1, 0], [0, 0, 0]]),
        ([[0], [0, 1]], ["0", "1"], [[1, 0], [1, 1]]),
        ([["0"], ["1"]], ["0", "1"], "refused"),
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], ["0", "1", "2"], [[0, 1, 1], [1, 0, 0]]),
        ([[0, 1, 1], [1, 0, 0]], ["0", "1", "2"], [[0, 1, 1], [1, 0, 0]]),
        ([[True, False], [True, True]], ["0", "1"], [[1, 0], [1, 1]]),
        ([[1, 0], [0, 1]], ["0", "1"], [[1, 0], [0, 1]]),
        ([[0.5, 1.0], [1.0, 0.0]], None, "refused"),
        ([[1], [0]], None, "refused"),
        ([["a"], ["a"]], None, "refused"),
        # Numbers.
        ([1.5, 2.0], None, [1.5, 2.0]),
        (["0.5", "1"], None, [0.5, 1.0]),
        # Nothing to learn, or no labels.
        ([1, 1], None, "refused"),
        ([], None, "refused"),
        ([1, None, 0], None, "refused"),
        ([1.0, float("nan"), 0.0], None, "refused"),
        ([0.5, float("inf")], None, "refused"),
        (["a", "", "b"], None, "refused"),
        ([["a"], None], None, "refused"),
        ([["a", None], ["b"]], None, "refused"),
        (["[0, 1]", "[1, 0]"], None, "refused"),
        ([{"a": 1}, {"a": 0}], None, "refused"),
    ],
)
def test_training_rows_alone(values: list[Any], names: list[str] | None, targets: Any) -> None:
    if targets == "refused":
        with pytest.raises(InputError, match="rows"):
            label_scheme(column(values), None, "rows")
        return
    scheme = label_scheme(column(values), None, "rows")
    encoded = scheme.encode(column(values), "rows")
    assert encoded.tolist() == targets
    kind = SEVERAL if isinstance(targets[0], list) else CLASSES if names else NUMBERS
    assert scheme.problem_type == kind
    assert encoded.dtype == (np.int64 if kind == CLASSES else np.float32)
    assert (None if scheme.names is None else list(scheme.names)) == names
    assert scheme.num_labels == len(names or [0])


def known(names: str, problem: Any = None) -> KnownLabels:
    return KnownLabels(problem, len(names.split()), tuple(names.split()))


MODEL = {
    "words": known("pos neg"),  # not in the order of the alphabet
    "default": known("LABEL_0 LABEL_1"),
    "numbers": known("1 5"),
    "from 0": known("0 1"),
    "booleans": known("False True"),
    "three": known("neg neutral pos"),
    "several": known("toxic obscene", SEVERAL),
    "number": known("LABEL_0", NUMBERS),
    "numbers each": known("LABEL_0 LABEL_1", NUMBERS),
}


@pytest.mark.parametrize(
    ("model", "values", "targets"),
    [
        ("words", ["neg", "pos"], [1, 0]),
        ("words", ["neg", "neg"], [1, 1]),  # a test file without the other class
        ("words", ["Neg", "POS"], [1, 0]),
        ("words", [1, 0], [1, 0]),
        ("words", ["1", "0"], [1, 0]),
        ("words", [True, False], [1, 0]),
        ("words", ["good", "bad"], "refused"),
        ("words", [0, 2], "refused"),
        ("words", [-1, 0], "refused"),
        ("words", [0.5, 1], "refused"),
        ("words", [["neg"], ["pos", "neg"]], [[0, 1], [1, 1]]),  # several labels, as the data say
        ("default", [1, 0], [1, 0]),
        ("default", [1, 1], [1, 1]),
        ("default", [1.0, 0.0], [1, 0]),
        ("default", ["1", "0"], [1, 0]),
        ("default", [True, False], [1, 0]),
        ("default", ["LABEL_1", "LABEL_0"], [1, 0]),
        ("default", ["neg", "pos"], "refused"),
        ("default", [1, 5], "refused"),
        ("default", [10**12, 0], "refused"),
        ("numbers", [5, 1], [1, 0]),
        ("numbers", ["5", "5"], [1, 1]),
        ("numbers", [5.0, 1.0], [1, 0]),
        ("numbers", [1, 0], "refused"),  # 1 is a name, so that 0 cannot be a position
        ("from 0", [1, 0], [1, 0]),
        ("from 0", [True, False], [1, 0]),
        ("booleans", [1, 0], [1, 0]),
        ("booleans", ["true", "false"], [1, 0]),
        ("booleans", [True, True], [1, 1]),
        ("three", ["pos", "neg"], [2, 0]),
        ("three", [2, 0], [2, 0]),
        ("several", [["obscene"], [], ["obscene", "toxic"]], [[0, 1], [0, 0], [1, 1]]),
        ("several", [[0, 1], [1, 1]], [[0, 1], [1, 1]]),
        ("several", [[0.0, 1.0], [0.0, 0.0]], [[0, 1], [0, 0]]),
        ("several", [[1], [0], [0, 1]], [[0, 1], [1, 0], [1, 1]]),
        ("several", [[0, 1, 0], [1, 1, 0]], "refused"),
        ("several", [[0, 0, 1], [1]], "refused"),
        ("several", ["toxic", "obscene"], "refused"),
        ("several", [["other"]], "refused"),
        ("number", [1, 5], [1.0, 5.0]),
        ("number", [0.5, 2], [0.5, 2.0]),
        ("number", ["1", "2"], [1.0, 2.0]),
        ("number", ["good", "bad"], "refused"),
        ("number", [[0.5], [1.0]], "refused"),
        ("numbers each", [0.5, 1.5], "refused"),
    ],
)
def test_a_trained_model_keeps_its_own_labels(model: str, values: list[Any], targets: Any) -> None:
    def encoded() -> Any:
        scheme = label_scheme(column(values), None, "rows", MODEL[model])
        return scheme.encode(column(values), "rows")

    if targets == "refused":
        with pytest.raises(InputError, match="rows"):
            encoded()
        return
    assert encoded().tolist() == targets
    if MODEL[model].problem_type is not None:  # nothing is learned of the rows
        assert scheme_of_model(MODEL[model]).encode(column(values), "rows").tolist() == targets


@pytest.mark.parametrize(
    ("options", "values", "names", "targets"),
    [
        (KnownLabels(NUMBERS), [1, 5], None, [1.0, 5.0]),
        (KnownLabels(NUMBERS, 1), [1, 5], None, [1.0, 5.0]),
        (KnownLabels(NUMBERS), [True, False], None, [1.0, 0.0]),
        (KnownLabels(NUMBERS), ["a", "b"], None, "not every data.label is a number"),
        (KnownLabels(CLASSES), [0.5, 1.0], None, "model.problem_type: regression"),
        (KnownLabels(CLASSES), [["a"], ["b"]], None, "multi_label_classification"),
        (KnownLabels(SEVERAL), ["a", "b"], None, "write lists"),
        (KnownLabels(None, 3), [0, 2], ["0", "1", "2"], [0, 2]),
        (KnownLabels(None, 2), [1, 5], ["1", "5"], [0, 1]),
        (KnownLabels(None, 3), ["a", "b"], ["a", "b", "LABEL_2"], [0, 1]),
        (KnownLabels(None, 2), ["a", "b", "c"], None, "3 labels and model.num_labels is 2"),
        (KnownLabels(None, 3), [[0, 1], [1, 1]], None, "vectors of 2 .* 3 labels"),
    ],
)
def test_options_for_a_new_head(
    options: KnownLabels, values: list[Any], names: list[str] | None, targets: Any
) -> None:
    def encoded() -> Any:
        return label_scheme(column(values), None, "rows", options).encode(column(values), "rows")

    if isinstance(targets, str):
        with pytest.raises(InputError, match=targets):
            encoded()
        return
    assert encoded().tolist() == targets
    scheme = label_scheme(column(values), None, "rows", options)
    assert (None if scheme.names is None else list(scheme.names)) == names


@pytest.mark.parametrize(
    "model", [None, "words", "default", "numbers", "from 0", "three", "several"]
)
def test_declared_classes_go_by_their_names(model: str | None) -> None:
    declared, values = ["neg", "neutral", "pos"], column([0, 2])
    given = KnownLabels() if model is None else MODEL[model]
    expected = {None: [0, 2], "words": [1, 0], "three": [0, 2]}.get(model)
    if expected is None:  # names that are not the model's
        with pytest.raises(InputError):
            label_scheme(values, declared, "rows", given).encode(values, "rows", declared)
        return
    scheme = label_scheme(values, declared, "rows", given)
    assert scheme.encode(values, "rows", declared).tolist() == expected
    with pytest.raises(InputError, match=r"-1 \(-1 marks rows without a label\)"):
        scheme.encode(column([0, -1]), "rows", declared)


def test_types_of_parquet_files() -> None:
    for kind in (pa.int8(), pa.uint64(), pa.float32(), pa.decimal128(9, 2)):
        assert label_scheme(column([0, 1], kind), None, "rows").names == ("0", "1")
    for kind in (pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        values = pa.chunked_array([pa.array(["b", "a"]).cast(kind)])
        assert label_scheme(values, None, "rows").names == ("a", "b")
    fixed = column([[0, 1], [1, 1]], pa.list_(pa.int64(), 2))
    assert label_scheme(fixed, None, "rows").encode(fixed, "rows").tolist() == [[0, 1], [1, 1]]
    parts = pa.chunked_array([pa.array(["b"]), pa.array(["a", "b"])])
    assert label_scheme(parts, None, "rows").encode(parts, "rows").tolist() == [1, 0, 1]


def test_other_files_must_have_the_labels_of_training() -> None:
    scheme = label_scheme(column(["neg", "pos"]), None, "rows")
    with pytest.raises(InputError, match="'neutral', and training knows only 'neg', 'pos'"):
        scheme.encode(column(["neg", "neutral"]), "rows")
    with pytest.raises(InputError, match="training knows only"):
        scheme.encode(column([0, 1]), "rows")  # which of them is 0?
    numbers = label_scheme(column([0, 1]), None, "rows")
    with pytest.raises(InputError, match="'pos', and training knows only '0', '1'"):
        numbers.encode(column(["pos"]), "rows")
    with pytest.raises(InputError, match=r"0\.5.*model\.problem_type: regression"):
        numbers.encode(column([0.5]), "rows")
    vectors = label_scheme(column([[0, 1, 0], [1, 1, 1]]), None, "rows")
    with pytest.raises(InputError, match="vectors of 2"):
        vectors.encode(column([[0, 1]]), "rows")
    with pytest.raises(InputError, match="no vectors of 3"):
        vectors.encode(column([[2], [0, 1]]), "rows")


def test_the_first_row_without_a_label_is_named() -> None:
    with pytest.raises(InputError, match="2 of 3 rows have no label, the first of them row 2"):
        label_scheme(column([1, None, None]), None, "rows")
