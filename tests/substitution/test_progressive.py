import pytest

from lightning_compress.substitution.edit import replacement_probability, sample_switches_


@pytest.fixture
def switches(staged_substitution):
    return staged_substitution(groups=((0,), (1,), (2, 3), (4,))).switches


@pytest.mark.parametrize(
    ("step", "final_step", "initial", "wanted"),
    [
        (0, 100, 0.3, 0.3),
        (50, 100, 0.3, 0.65),
        (99, 100, 0.3, 0.993),
        (100, 100, 0.3, 1.0),
        (5000, 100, 0.3, 1.0),
        (0, 0, 0.3, 1.0),
        (7, 10, 0.0, 0.7),
        (7, 10, 1.0, 1.0),
    ],
)
def test_probability_grows_linearly(step, final_step, initial, wanted):
    assert replacement_probability(step, final_step=final_step, initial=initial) == pytest.approx(
        wanted
    )


def drawn(switches, probability, key):
    sample_switches_(switches, probability, key)
    return [switch.sampled for switch in switches]


def test_draws_depend_on_the_key_alone(switches):
    for batch in range(20):
        assert drawn(switches, 0.5, f"3-{batch}") == drawn(switches, 0.5, f"3-{batch}")
    series = [[drawn(switches, 0.5, f"{seed}-{b}") for b in range(20)] for seed in (3, 4)]
    assert series[0] != series[1]


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_draw_frequency_is_the_probability(switches, probability):
    draws = [drawn(switches, probability, f"0-{batch}") for batch in range(4000)]
    for group in zip(*draws, strict=True):
        assert sum(group) / 4000 == pytest.approx(probability, abs=0.03)


def test_groups_are_drawn_independently(switches):
    draws = [drawn(switches, 0.5, f"0-{batch}") for batch in range(4000)]
    both = sum(one[0] and one[1] for one in draws) / 4000
    assert both == pytest.approx(0.25, abs=0.03)
