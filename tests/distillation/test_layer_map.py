import pytest

from lightning_compress.distillation.options import layer_pairs
from lightning_compress.errors import InputError


@pytest.mark.parametrize(
    ("student", "teacher", "taught_by"),
    [
        (1, 1, [0]),
        (4, 4, [0, 1, 2, 3]),
        (1, 12, [11]),
        (2, 12, [5, 11]),
        (4, 12, [2, 5, 8, 11]),
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (5, 12, [1, 4, 6, 9, 11]),  # they end 2.4, 4.8, 7.2, 9.6 and 12 layers up
        (3, 4, [0, 2, 3]),
        (4, 2, [0, 0, 1, 1]),  # deeper than its teacher
        (12, 1, [0] * 12),
    ],
)
def test_uniform_pairs_end_equally_far_up(student, teacher, taught_by):
    assert layer_pairs("uniform", student, teacher) == list(enumerate(taught_by))


def test_uniform_takes_a_nearest_layer_and_never_goes_down():
    for student in range(1, 15):
        for teacher in range(1, 15):
            pairs = layer_pairs("uniform", student, teacher)
            assert [own for own, _ in pairs] == list(range(student))
            taught_by = [its for _, its in pairs]
            assert taught_by == sorted(taught_by)
            assert taught_by[-1] == teacher - 1
            for own, its in pairs:
                ends = [
                    abs((own + 1) / student - (layer + 1) / teacher) for layer in range(teacher)
                ]
                assert ends[its] == pytest.approx(min(ends))


def test_last_pairs_the_last():
    assert layer_pairs("last", 4, 12) == [(3, 11)]
    assert layer_pairs("last", 12, 4) == [(11, 3)]
    assert layer_pairs("last", 1, 1) == [(0, 0)]


def test_explicit_pairs_are_taken_as_they_are():
    assert layer_pairs({3: 0, 0: 11, 1: 11}, 4, 12) == [(0, 11), (1, 11), (3, 0)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({4: 0}, r"layer 4 of the student, which has layers 0 to 3"),
        ({0: 12}, r"layer 12 of the teacher, which has layers 0 to 11"),
        ({-1: 0}, r"layer -1 of the student"),
        ({0: -1}, r"layer -1 of the teacher"),
        ({0: 0, 7: 1, 5: 1}, r"layer 5 of the student"),
        ({}, r"layers maps no layer"),
    ],
)
def test_layers_that_are_not_there_are_named(layers, message):
    with pytest.raises(InputError, match=rf"losses: .*{message}"):
        layer_pairs(layers, 4, 12)
