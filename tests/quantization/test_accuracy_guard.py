import itertools
import math

import pytest

from lightning_compress.models import manifest_of
from lightning_compress.models.manifest import edits_of
from lightning_compress.quantization import QuantizationConfig, coverage_of, quantize_
from lightning_compress.quantization.accuracy_guard import (
    GIVEN_BACK,
    GuardChoice,
    choose_given_back,
    describe_guard,
    describe_refusal,
    groups_by_weight,
    record_guard_,
)

from ..families import tiny_language_model

COSTS = {"a": 1.0, "b": 4.0, "c": 2.0, "d": 2.0}
GROUPS = [("a",), ("b",), ("c",), ("d",)]


def search(max_loss, groups=GROUPS, costs=COSTS, divergences=(0.1, 0.4, 0.2, 0.3)):
    """Losses add up; gives the choice and all sets of names that were measured."""
    measured = []

    def loss_without(names):
        measured.append(set(names))
        return sum(cost for name, cost in costs.items() if name not in names)

    choice = choose_given_back(
        groups, loss_without, max_loss=max_loss, divergences=lambda: divergences
    )
    return choice, measured


def test_nothing_is_given_back_where_everything_fits():
    choice, measured = search(9.0)
    assert choice == GuardChoice(True, [9.0], {})
    assert measured == [set()]


@pytest.mark.parametrize("max_loss", [8.5, 5.0, 4.0, 3.0, 2.5, 1.0])
def test_as_few_as_needed_are_given_back_along_the_ranking(max_loss):
    """Against all prefixes of the ranking, which is worst first, ties by divergence."""
    ranking = ["b", "d", "c", "a"]
    choice, _ = search(max_loss)
    fitting = [
        ranking[:count]
        for count in range(4)
        if sum(COSTS[name] for name in ranking[count:]) <= max_loss
    ]
    assert choice.fits
    assert list(choice.given_back) == fitting[0]
    assert choice.given_back == {name: COSTS[name] for name in fitting[0]}
    assert choice.losses[-1] == sum(COSTS[name] for name in ranking[len(fitting[0]) :])
    assert all(loss > max_loss for loss in choice.losses[:-1])


def test_nothing_fits_with_a_single_module_left():
    choice, measured = search(0.5)
    assert choice == GuardChoice(False, [9.0, 5.0, 3.0, 1.0], {})
    # Never all of them: then nothing would be quantized.
    assert set(COSTS) not in measured


@pytest.mark.parametrize("groups", [[], [("a", "b", "c", "d")]])
def test_one_group_or_the_whole_model_fits_or_not(groups):
    assert search(9.0, groups)[0].fits
    choice, measured = search(8.9, groups)
    assert choice == GuardChoice(False, [9.0], {})
    assert len(measured) == 1


def test_a_loss_that_is_not_finite_is_the_worst():
    choice, _ = search(7.0, costs=COSTS | {"c": math.inf})
    assert choice.given_back == {"c": math.inf}


def test_modules_with_one_weight_are_given_back_together():
    groups = [("a",), ("b", "c"), ("d",)]
    choice, measured = search(3.0, groups, divergences=(0.0, 0.0, 0.0))
    assert choice.given_back == {"b": 6.0, "c": 6.0}
    assert all(("b" in names) == ("c" in names) for names in measured)


def test_the_head_of_gpt2_is_in_one_group_with_its_embedding():
    model = tiny_language_model("gpt2")
    names = ["transformer.wte", "transformer.wpe", "lm_head", "transformer.h.0.mlp.c_fc"]
    assert groups_by_weight(model, names) == [
        ("transformer.wte", "lm_head"),
        ("transformer.wpe",),
        ("transformer.h.0.mlp.c_fc",),
    ]


def test_the_record_is_part_of_the_edit_and_explains_what_is_skipped(tiny_bert):
    skipped = ["bert.pooler.dense", "bert.encoder.layer.0.output.dense"]
    quantize_(tiny_bert, QuantizationConfig(skip_modules=skipped))
    before = manifest_of(tiny_bert)[0]
    choice = GuardChoice(True, [8.0, 4.0, 0.25], dict(zip(skipped, (math.inf, 4.0), strict=True)))
    text = record_guard_(
        tiny_bert, choice, max_loss=0.5, metric="accuracy", before=0.95, examples=400
    )
    (edit,) = edits_of(tiny_bert, "quantize")
    assert edit["accuracy_guard"] == {
        "max_loss": 0.5,
        "metric": "accuracy",
        "floating_point": 0.95,
        "points_lost": 0.25,
        "standard_error": pytest.approx(100 * math.sqrt(0.95 * 0.05 / 400)),
        "examples": 400,
        "given_back": {skipped[0]: None, skipped[1]: 4.0},
    }
    reasons = coverage_of(tiny_bert).skipped
    assert {name for name, why in reasons.items() if why == GIVEN_BACK} == set(skipped)
    assert {**edit, "skipped": None} == {
        **before, "skipped": None, "accuracy_guard": edit["accuracy_guard"],
    }  # fmt: skip
    assert text == (
        "accuracy guard (max_loss 0.5): quantization costs 0.25 points of accuracy on 400 "
        "validation examples (below the standard error of 1.09: no difference); given back to "
        "floating point: bert.pooler.dense (not finite alone), "
        "bert.encoder.layer.0.output.dense (4.00 alone)"
    )


def test_of_many_modules_the_worst_are_named_and_real_losses_are_not_called_noise():
    record = {
        "max_loss": 2,
        "metric": "perplexity",
        "points_lost": 1.5,
        "examples": 1234,
        "standard_error": None,
        "given_back": dict(sorted({name: 9.0 - n for n, name in enumerate("cabed")}.items())),
    }
    assert describe_guard(record) == (
        "accuracy guard (max_loss 2): quantization costs 1.50 points of perplexity on 1,234 "
        "validation examples; given back to floating point: c (9.00 alone), a (8.00 alone), "
        "b (7.00 alone) and 2 more"
    )
    for lost, error in itertools.product((-3.0, 3.0), (2.0, 4.0)):
        text = describe_guard(record | {"points_lost": lost, "standard_error": error})
        assert ("no difference" in text) == (error == 4.0)


@pytest.mark.parametrize(
    ("losses", "scheme", "expected"),
    [
        ([12.5, 9.0, 3.0, 4.0], "int8-static", "would be 12.50 points worse (with modules given "
         "back 3.00 points at best) in int8-static, and max_loss allows 0.5. Raise max_loss, or "
         "use QuantizationAwareTraining"),
        ([12.5], "bf16", "would be 12.50 points worse in bf16, and max_loss allows 0.5. Raise "
         "max_loss"),
        ([math.inf, math.inf], "fp16", "would be not finite in fp16, and max_loss allows 0.5. "
         "Raise max_loss"),
        (None, "fp16", "is not finite, so no loss can be measured. Check the training and the "
         "labels, or leave out max_loss"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_figures_and_the_remedy(losses, scheme, expected):
    choice = None if losses is None else GuardChoice(False, losses, {})
    text = describe_refusal(choice, scheme=scheme, max_loss=0.5, metric="f1", examples=1234)
    assert text == (
        "max_loss: the model stays in floating point: its f1 on 1,234 validation examples "
        + expected
    )
