"""Validation rows: a partition, by seed, with every class's share."""

import numpy as np
import pytest

from lightning_compress.data.splits import carve_validation
from lightning_compress.errors import InputError


def test_partition_by_seed() -> None:
    train, validation = carve_validation(100, fraction=0.2, seed=3)
    assert sorted([*train, *validation]) == list(range(100))
    assert len(validation) == 20
    again = carve_validation(100, fraction=0.2, seed=3)[1]
    assert again.tolist() == validation.tolist()
    assert carve_validation(100, fraction=0.2, seed=4)[1].tolist() != validation.tolist()


def test_every_class_gives_its_share() -> None:
    classes = np.array([0] * 70 + [1] * 20 + [2] * 10)[np.random.default_rng(0).permutation(100)]
    validation = carve_validation(100, fraction=0.1, seed=0, classes=classes)[1]
    assert np.bincount(classes[validation]).tolist() == [7, 2, 1]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_part_is_empty(fraction: float) -> None:
    for part in carve_validation(5, fraction=fraction, seed=0, classes=np.arange(5)):
        assert len(part) > 0


def test_one_row_cannot_be_divided() -> None:
    with pytest.raises(InputError, match=r"1 training row\(s\) cannot be divided"):
        carve_validation(1, fraction=0.1, seed=0)
