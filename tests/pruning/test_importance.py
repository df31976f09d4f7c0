import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.models import remove_heads_, remove_neurons_, units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import macs_per_pair, macs_per_token, output_dim
from lightning_compress.pruning.importance import UNIT_SCORES

from ..families import ALL
from .conftest import all_units

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
LENGTHS = [4, 9, 6, 7, 3, 9, 5]


def examples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (len(LENGTHS), 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(7) % 2}


def calibration_in(model, sizes=(3, 4)):
    """All examples in batches of these sizes, padded no further than needed."""
    batches, start = [], 0
    for size in sizes:
        longest = max(LENGTHS[start : start + size])
        batch = {name: value[start : start + size] for name, value in examples().items()}
        batches.append({n: v[:, :longest] if v.dim() == 2 else v for n, v in batch.items()})
        start += size
    return Calibration(
        batches, lambda batch: model(**batch).loss, lambda batch: model(**batch).logits
    )


def one_by_one(model):
    """The examples without any padding."""
    data = examples()
    for row, length in enumerate(LENGTHS):
        ids, labels = data["input_ids"][row : row + 1, :length], data["labels"][row : row + 1]
        yield {"input_ids": ids, "labels": labels}


def columns_of(weight, model, units, unit):
    """What a unit's outputs are multiplied with: [W, O]."""
    rows = weight if output_dim(model.get_submodule(units.output)) else weight.T
    width = len(rows) // units.count
    return rows[unit * width : (unit + 1) * width]


@pytest.mark.parametrize(("score", "power"), [("taylor", 1), ("fisher", 2)])
@pytest.mark.parametrize("family", ALL)
def test_gradient_scores_are_means_over_single_examples(randomized_model, family, score, power):
    model = randomized_model(family)
    found = UNIT_SCORES[score](model, all_units(model), calibration_in(model))
    expected = {one.output: torch.zeros(one.count).double() for one in all_units(model)}
    for example in one_by_one(model):
        model.zero_grad()
        model(**example).loss.backward()
        for one in all_units(model):
            weight = model.get_submodule(one.output).weight
            for unit in range(one.count):
                # Scaling a unit is scaling its outgoing weights.
                outputs = columns_of(weight.detach(), model, one, unit)
                slope = (outputs * columns_of(weight.grad, model, one, unit)).sum()
                expected[one.output][unit] += slope.abs() ** power / len(LENGTHS)
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        assert found[name].dtype == torch.float64
        assert torch.allclose(found[name], scores, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_activation_is_the_variance_without_padding_times_the_squared_weights(
    randomized_model, family
):
    model = randomized_model(family)
    found = UNIT_SCORES["activation"](model, all_units(model), calibration_in(model))
    for one in all_units(model):
        outputs: list[torch.Tensor] = []
        module = model.get_submodule(one.output)
        hook = module.register_forward_pre_hook(
            lambda _, inputs, outputs=outputs: outputs.append(inputs[0])
        )
        with torch.no_grad():
            for example in one_by_one(model):
                model(**example)
        hook.remove()
        tokens = torch.cat([each[0] for each in outputs])
        width = tokens.shape[1] // one.count
        for unit in range(one.count):
            columns = columns_of(module.weight.detach(), model, one, unit)
            score = 0.0
            for inner in range(width):
                values = tokens[:, unit * width + inner]
                score += float(values.var(correction=0) * (columns[inner] ** 2).sum())
            assert float(found[one.output][unit]) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_magnitude_is_the_sum_of_squares_of_the_removed_weights(randomized_model, family):
    model = randomized_model(family)
    found = UNIT_SCORES["magnitude"](model, all_units(model), calibration_in(model))

    def squares(model):
        matrices = [weight.detach() for weight in model.parameters() if weight.dim() == 2]
        return sum(float((weight**2).sum()) for weight in matrices)

    for one in all_units(model):
        for unit in range(0, one.count, 1 if one.kind == "heads" else 13):
            smaller = copy.deepcopy(model)
            REMOVE[one.kind](smaller, {one.layer: [unit]})
            removed = squares(model) - squares(smaller)
            assert float(found[one.output][unit]) == pytest.approx(removed, rel=1e-9)


def test_magnitude_takes_the_rows_of_query_key_and_value(randomized_model):
    for family in ("bert", "gpt2", "llama"):
        model = randomized_model(family)
        found = UNIT_SCORES["magnitude"](model, all_units(model), calibration_in(model))
        for one in units_of(model, "heads"):
            get = model.get_submodule
            block = one.output.rpartition(".")[0].removesuffix(".output")
            for head in range(4):
                own = slice(8 * head, 8 * head + 8)
                if family == "bert":
                    parts = [
                        get(f"{block}.self.{n}").weight[own] for n in ("query", "key", "value")
                    ]
                    parts.append(get(one.output).weight[:, own])
                elif family == "gpt2":
                    fused = get(f"{block}.c_attn").weight
                    parts = [fused[:, part * 32 :][:, own] for part in range(3)]
                    parts.append(get(one.output).weight[own])
                else:  # two query heads of 4 for each key-value head of 4
                    shared = slice(4 * head, 4 * head + 4)
                    parts = [get(f"{block}.{n}_proj").weight[shared] for n in ("k", "v")]
                    parts.append(get(f"{block}.q_proj").weight[own])
                    parts.append(get(one.output).weight[:, own])
                expected = sum(float((part.detach() ** 2).sum()) for part in parts)
                assert float(found[one.output][head]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("score", ["magnitude", "taylor", "fisher", "activation"])
@pytest.mark.parametrize("family", ALL)
def test_scores_do_not_depend_on_how_examples_are_batched(randomized_model, family, score):
    model = randomized_model(family)
    found = [
        UNIT_SCORES[score](model, all_units(model), calibration_in(model, sizes))
        for sizes in ((7,), (1, 5, 1), (1,) * 7)
    ]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name in other:
            assert torch.allclose(other[name], found[0][name], rtol=1e-4)


def test_random_scores_follow_torch_s_seed_and_the_cost_of_a_unit(tiny_bert):
    units = all_units(tiny_bert)

    def draw(seed):
        torch.manual_seed(seed)
        return UNIT_SCORES["random"](tiny_bert, units, calibration_in(tiny_bert))

    first, again, other = draw(1), draw(1), draw(2)
    for one in units:
        assert torch.equal(first[one.output], again[one.output])
        assert not torch.equal(first[one.output], other[one.output])
        assert first[one.output].shape == (one.count,)
        share = first[one.output] / macs_per_token(tiny_bert, one)
        assert ((share >= 0) & (share < 1)).all()
    heads, neurons = units[:2], units[2:]
    assert first[heads[0].output].max() > first[neurons[0].output].max()
    assert len({float(value) for scores in first.values() for value in scores}) == 2 * (4 + 64)


# A head of DeBERTa also saves products with relative positions, whose number no text decides.
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", [family for family in ALL if family != "deberta-v2"])
def test_the_cost_of_a_unit_is_what_the_model_saves_without_it(tiny_model, family, kind):
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    data = {name: examples()[name] for name in ("input_ids", "attention_mask")}

    def macs():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**data)
        return counter.get_total_flops() / 2

    units = units_of(model, kind)[0]
    unit = macs_per_token(model, units) * 9 + macs_per_pair(model, units) * 81
    before = macs()
    REMOVE[kind](model, {0: [1]})
    # ALBERT passes its one block twice.
    assert before - macs() == unit * len(LENGTHS) * (2 if family == "albert" else 1)
