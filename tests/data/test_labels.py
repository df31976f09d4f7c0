"""What labels of every kind become."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_compress.data.labels import label_scheme
from lightning_compress.errors import InputError


def column(values: list[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


@pytest.mark.parametrize(
    ("values", "names", "targets"),
    [
        ([1, 0, 1], ["0", "1"], [1, 0, 1]),
        ([-1, 1, 1], ["-1", "1"], [0, 1, 1]),
        ([5, 1, 10], ["1", "5", "10"], [1, 0, 2]),
        (["pos", "neg"], ["neg", "pos"], [1, 0]),
        ([True, False], ["False", "True"], [1, 0]),
    ],
)
def test_classes_stand_in_order(values: list[Any], names: list[str], targets: list[int]) -> None:
    scheme = label_scheme(column(values), None, "rows")
    assert scheme.problem_type == "single_label_classification"
    assert list(scheme.names or ()) == names
    assert scheme.num_labels == len(names)
    encoded = scheme.encode(column(values), "rows")
    assert encoded.dtype == np.int64
    assert encoded.tolist() == targets


def test_declared_classes_keep_their_names_and_places() -> None:
    scheme = label_scheme(column([0, 2]), ["a", "b", "c"], "rows")
    assert scheme.names == ("a", "b", "c")
    assert scheme.encode(column([2, 1]), "rows").tolist() == [2, 1]
    with pytest.raises(InputError, match=r"-1 \(-1 marks rows without a label\)"):
        scheme.encode(column([0, -1]), "rows")


def test_fractions_make_a_regression() -> None:
    scheme = label_scheme(column([1.5, 2.0]), None, "rows")
    assert (scheme.problem_type, scheme.num_labels, scheme.names) == ("regression", 1, None)
    encoded = scheme.encode(column([1, 3]), "rows")
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [1.0, 3.0]
    with pytest.raises(InputError, match=r"not every data\.label is a number"):
        scheme.encode(column(["x", "y"]), "rows")


def test_lists_make_a_multi_label_problem() -> None:
    scheme = label_scheme(column([["b"], ["a", "c"], []]), None, "rows")
    assert scheme.problem_type == "multi_label_classification"
    assert scheme.names == ("a", "b", "c")
    encoded = scheme.encode(column([["c", "a"], [], ["b"]]), "rows")
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(InputError, match="no lists"):
        scheme.encode(column(["a"]), "rows")


def test_mistakes() -> None:
    with pytest.raises(InputError, match=r"rows has no rows: data\.path"):
        label_scheme(column([]), None, "rows")
    with pytest.raises(InputError, match="one and the same label, 1"):
        label_scheme(column([1, 1]), None, "rows")
    with pytest.raises(InputError, match="2 of 3 rows have no label, the first of them row 2"):
        label_scheme(column([1, None, None]), None, "rows")
    with pytest.raises(InputError, match="1 of 2 rows have no label"):
        label_scheme(column([1.0, float("nan")]), None, "rows")
    scheme = label_scheme(column(["neg", "pos"]), None, "rows")
    with pytest.raises(InputError, match="'neutral', and training knows only 'neg', 'pos'"):
        scheme.encode(column(["neg", "neutral"]), "rows")
    numbers = label_scheme(column([0, 1]), None, "rows")
    with pytest.raises(InputError, match="'pos', and training knows only 0, 1"):
        numbers.encode(column(["pos"]), "rows")
