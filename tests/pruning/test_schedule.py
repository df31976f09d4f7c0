import itertools
import math

import pytest

from lightning_compress.errors import InputError
from lightning_compress.pruning import Phases, PruningSchedule


def test_cubic_is_the_formula_of_the_paper():
    schedule = PruningSchedule("cubic", 0.8, begin=10, end=60, interval=5, run=100)
    final, initial, start, updates, spacing = 0.8, 0.0, 10, 10, 5
    for step in range(10, 61):
        share = 1 - (step - start) / (updates * spacing)
        assert schedule.at(step) == pytest.approx(final + (initial - final) * share**3)


@pytest.mark.parametrize("shape", ["linear", "cubic"])
def test_gradual_schedules_are_dense_then_grow_then_stay(shape):
    schedule = PruningSchedule(shape, 0.8, begin=10, end=60, interval=5, run=100)
    values = [schedule.at(step) for step in range(101)]
    assert values[:11] == [0.0] * 11
    assert values[60:] == [0.8] * 41
    assert all(a < b for a, b in itertools.pairwise(values[10:61]))


def test_linear_is_even_and_one_shot_a_jump():
    linear = PruningSchedule("linear", 0.6, begin=0, end=60, interval=1, run=60)
    assert [linear.at(step) for step in (0, 15, 30, 60)] == pytest.approx([0, 0.15, 0.3, 0.6])
    jump = PruningSchedule("one_shot", 0.6, begin=7, end=7, interval=1, run=60)
    assert [jump.at(step) for step in (0, 6, 7, 60)] == [0, 0, 0.6, 0.6]
    assert [step for step in range(10) if jump.updates_at(step)] == [7, 8, 9]


def test_updates_come_at_the_ends_and_every_interval():
    schedule = PruningSchedule("cubic", 0.8, begin=3, end=14, interval=4, run=20)
    assert [step for step in range(15) if schedule.updates_at(step)] == [3, 7, 11, 14]


@pytest.mark.parametrize(
    ("phases", "begin", "end", "interval"),
    [
        (Phases("cubic", None, None, None, "run"), 100, 700, 20),
        (Phases("cubic", None, None, None, "steps"), 100, 700, 20),
        (Phases("linear", 0.25, 0.5, 0.001, "run"), 250, 500, 1),
        (Phases("linear", 0, 0, 1, "epochs"), 0, 1000, 50),
        (Phases("cubic", 2, 4.5, 0.5, "epochs"), 100, 775, 25),
        (Phases("cubic", 10, 300, 7, "steps"), 10, 700, 7),
        (Phases("one_shot", 0.5, None, None, "run"), 500, 500, 20),
        (Phases("one_shot", 20, None, None, "epochs"), 1000, 1000, 20),
    ],
)
def test_phases_become_steps(phases, begin, end, interval):
    expected = PruningSchedule(phases.shape, 0.9, begin, end, interval, 1000)
    assert phases.in_steps(0.9, 1000, 50) == expected


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (Phases("cubic", 0.5, 0.5, None, "run"), "leave 0 for pruning"),
        (Phases("cubic", 60, 60, 1, "steps"), "leave 0 for pruning"),
        (Phases("linear", 9, 2, 1, "epochs"), "90 steps of warmup and 20 of recovery"),
        (Phases("cubic", 10, 80, 11, "steps"), "less than one interval of 11"),
        (Phases("one_shot", 101, None, None, "steps"), "more than the run's 100 steps"),
    ],
)
def test_phases_that_do_not_fit_are_refused(phases, message):
    with pytest.raises(InputError, match=message):
        phases.in_steps(0.5, 100, 10)


@pytest.mark.parametrize("run", [math.inf, -1, 0])
def test_a_run_without_a_length_is_refused(run):
    with pytest.raises(InputError, match=r"trainer\.max_steps"):
        Phases("cubic", None, None, None, "run").in_steps(0.5, run, 10)


def test_epochs_without_a_length_are_refused():
    with pytest.raises(InputError, match="unit: epochs"):
        Phases("cubic", 1, 1, 1, "epochs").in_steps(0.5, 100, math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cubic", -0.1, None, None, "run"), "warmup: -0.1"),
        (("cubic", math.nan, None, None, "run"), "warmup: nan"),
        (("cubic", None, None, 0, "run"), "interval: 0"),
        (("cubic", None, 300, None, "run"), "recovery: 300 is more than the whole run"),
        (("cubic", 0.1, None, None, "steps"), "warmup: 0.1 is not an integer number of steps"),
        (("one_shot", 0.1, 0.3, None, "run"), "recovery: has no meaning with schedule: one_shot"),
        (("one_shot", 0.1, None, 0.3, "run"), "interval: has no meaning"),
    ],
)
def test_invalid_lengths_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Phases(*options)
