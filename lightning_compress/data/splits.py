"""The parts of a data set: which there are, which a stage reads, how their rows are numbered.

A validation split, split off the training rows.
"""

from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_compress.errors import InputError

SplitName = Literal["train", "validation", "test", "predict", "unlabelled"]


# Their order decides about the ids of examples: further ones go to the end.
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test", "predict", "unlabelled")


_STAGES: dict[str, tuple[SplitName, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


def first_id(origin: SplitName) -> int:
    """The ``example_id`` of a source's first row; further rows count up.

    Rows of training files count from 0, also where they are carved out for validation; those of a
    validation file from 2**40, those of the test split from 2**41, unlabelled rows from 2**42.
    """
    return SPLITS.index(origin) * 2**40


def row_of(example_id: int) -> int:
    """The row of its file, counted from 0, that has an ``example_id``."""
    return example_id % 2**40


def splits_of(stage: str) -> tuple[SplitName, ...]:
    """The splits that a stage of Lightning's (``fit``, ``test``, ...) reads."""
    return _STAGES[stage]


def rows_of(
    split: SplitName,
    rows: int,
    *,
    fraction: float,
    seed: int,
    classes: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
    with_test: bool,
) -> NDArray[np.int64]:
    """The rows of one of the splits that share a file.

    Args:
        split: ``train``, ``validation`` or ``test``.
        rows: how many there are in the file.
        fraction: fraction of the rows for validation and, of what is left, for the test.
        seed: chooses the rows.
        classes: [rows] class of each row; every class then gives its share.
        groups: [rows] group of each row, counted from 0, whose rows stay together: groups are
            divided, and ``fraction`` is one of them. There are no classes then.
        with_test: whether there are test rows, too.

    Raises:
        InputError: there are too few rows, or all are of one group.
    """
    rest = np.arange(rows if groups is None else int(groups.max(initial=-1)) + 1)
    if groups is not None and len(rest) < 2:
        raise InputError(
            f"data.path: all {rows} training rows belong together and cannot be divided into "
            "training and validation: give rows of more queries, or a validation file in "
            "data.splits"
        )
    found: dict[SplitName, NDArray[np.int64]] = {}
    for name in ("test", "validation") if with_test else ("validation",):
        left = None if classes is None else classes[rest]
        kept, carved = carve_validation(len(rest), fraction=fraction, seed=seed, classes=left)
        rest, found[name] = rest[kept], rest[carved]
    found["train"] = rest
    if groups is not None:
        found = {name: np.flatnonzero(np.isin(groups, chosen)) for name, chosen in found.items()}
    if with_test and split == "train":
        counts = ", ".join(f"{len(chosen)} {name}" for name, chosen in found.items())
        rank_zero_info(f"data.path is a single file, divided by data.seed: {counts} rows.")
    return found[split]


def carve_validation(
    rows: int, *, fraction: float, seed: int, classes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the training rows in two, the same way for the same seed.

    Args:
        rows: how many there are.
        fraction: fraction of the rows used for validation, in (0, 1).
        seed: chooses the rows.
        classes: [rows] class of each row; every class then gives its share.

    Returns:
        Positions for training and for validation, each ascending and neither empty.

    Raises:
        InputError: there are fewer than two rows.
    """
    if rows < 2:
        raise InputError(
            f"data.path: {rows} training row(s) cannot be divided into training and validation: "
            "give more rows, or a validation file in data.splits"
        )
    order = np.random.default_rng(seed).permutation(rows)
    groups = (
        [order] if classes is None else [order[classes[order] == c] for c in np.unique(classes)]
    )
    chosen = np.concatenate([group[: round(len(group) * fraction)] for group in groups])
    if not 0 < len(chosen) < rows:
        chosen = order[: 1 if len(chosen) == 0 else rows - 1]
    validation = np.zeros(rows, dtype=bool)
    validation[chosen] = True
    return np.flatnonzero(~validation), np.flatnonzero(validation)
