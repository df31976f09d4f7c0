"""The parts of a data set: which there are, which a stage reads, how their rows are numbered."""

from typing import Literal

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


def splits_of(stage: str) -> tuple[SplitName, ...]:
    """The splits that a stage of Lightning's (``fit``, ``test``, ...) reads."""
    return _STAGES[stage]
