import pytest

from lightning_compress.substitution.progressive import draw_, probability_at


@pytest.fixture
def choices(scene):
    return scene(groups=((0,), (1,), (2, 3), (4,))).choices


@pytest.mark.parametrize(
    ("step", "until", "first", "wanted"),
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
def test_the_probability_grows_in_a_straight_line(step, until, first, wanted):
    assert probability_at(step, until=until, first=first) == pytest.approx(wanted)


def drawn(choices, probability, key):
    draw_(choices, probability, key)
    return [choice.drawn for choice in choices]


def test_equal_keys_draw_alike_and_others_do_not(choices):
    for batch in range(20):
        assert drawn(choices, 0.5, f"3-{batch}") == drawn(choices, 0.5, f"3-{batch}")
    series = [[drawn(choices, 0.5, f"{seed}-{b}") for b in range(20)] for seed in (3, 4)]
    assert series[0] != series[1]


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_each_group_is_replaced_as_often_as_it_should(choices, probability):
    draws = [drawn(choices, probability, f"0-{batch}") for batch in range(4000)]
    for group in zip(*draws, strict=True):
        assert sum(group) / 4000 == pytest.approx(probability, abs=0.03)


def test_groups_are_drawn_on_their_own(choices):
    draws = [drawn(choices, 0.5, f"0-{batch}") for batch in range(4000)]
    both = sum(one[0] and one[1] for one in draws) / 4000
    assert both == pytest.approx(0.25, abs=0.03)
