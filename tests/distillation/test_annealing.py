import math

import pytest

from lightning_compress.distillation.attention import AttentionMaps, Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import TaskLoss
from lightning_compress.distillation.options import annealed_at, check_annealed
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.errors import InputError

TERMS = {
    "task": TaskLoss,
    "soft_targets": SoftTargets,
    "hidden_states": HiddenStates,
    "attention_maps": AttentionMaps,
    "relations": Relations,
    "embeddings": Embeddings,
}
NEVER = [0, 0.0, -1.0, (0.0, 0.0), (-1.0, 2.0), (2.0, -1.0), math.nan, (1.0, math.nan), math.inf]


def test_one_number_stays_and_two_are_the_ends_of_a_line():
    for progress in (0.0, 0.3, 1.0):
        assert annealed_at(2, progress) == 2.0
        assert isinstance(annealed_at(2, progress), float)
        assert annealed_at((4.0, 1.0), progress) == pytest.approx(4.0 - 3.0 * progress)
        assert annealed_at((0.0, 0.5), progress) == pytest.approx(0.5 * progress)


@pytest.mark.parametrize(
    ("value", "quarter"),
    [(1, 1.0), (0.5, 0.5), ((1.0, 2.0), 1.25), ((2.0, 1.0), 1.75), ([3.0, 3.0], 3.0)],
)
@pytest.mark.parametrize("zero_at_one_end", [True, False])
def test_positive_numbers_pass_and_can_be_followed(value, quarter, zero_at_one_end):
    check_annealed("x", value, zero_at_one_end=zero_at_one_end)
    assert annealed_at(value, 0.25) == quarter


@pytest.mark.parametrize("value", NEVER)
@pytest.mark.parametrize("zero_at_one_end", [True, False])
def test_others_are_refused_by_name(value, zero_at_one_end):
    with pytest.raises(InputError, match="the_option has to be positive"):
        check_annealed("the_option", value, zero_at_one_end=zero_at_one_end)


def test_zero_at_one_end_passes_only_where_it_may():
    for value in ((0.0, 1.0), (1.0, 0.0)):
        check_annealed("x", value, zero_at_one_end=True)
        with pytest.raises(InputError, match="x has to be positive"):
            check_annealed("x", value, zero_at_one_end=False)


def test_three_numbers_are_no_ramp():
    value: object
    for value in ((1.0, 2.0, 3.0), (1.0,)):
        with pytest.raises(InputError, match="the_option is one number or two"):
            check_annealed("the_option", value, zero_at_one_end=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", NEVER)
@pytest.mark.parametrize("term", TERMS)
def test_weights_of_all_terms_are_positive(term, weight):
    with pytest.raises(InputError, match=rf"losses\.{term}\.weight"):
        TERMS[term](weight=weight)
    TERMS[term](weight=(0.0, 1.0))
    TERMS[term](weight=(1.0, 0.0))


@pytest.mark.parametrize("temperature", [*NEVER, (0.0, 1.0), (4.0, 0.0)])
def test_temperatures_are_positive_at_both_ends(temperature):
    with pytest.raises(InputError, match=r"losses\.soft_targets\.temperature"):
        SoftTargets(temperature=temperature)


@pytest.mark.parametrize("heads", [0, -1])
def test_relation_heads_are_positive(heads):
    with pytest.raises(InputError, match=r"losses\.relations\.heads"):
        Relations(heads=heads)
