import pytest
import torch

from lightning_compress.models import units_of
from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.pruning.reconstruction import input_statistics

from ..families import ALL

LENGTHS = [[4, 9, 6], [7, 3, 9, 5]]


def batch(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(2, 100, (len(lengths), 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def looking(model, batches):
    return Calibration(
        batches, lambda batch: model(**batch).loss, lambda batch: model(**batch).logits
    )


def all_units(model):
    return [*units_of(model, "heads"), *units_of(model, "neurons")]


def inputs_alone(model, name):
    """The inputs of a projection, all examples one by one and without their padding: [N, W]."""
    found = []
    module = model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        for lengths in LENGTHS:
            for row, length in enumerate(lengths):
                model(input_ids=batch(lengths)["input_ids"][row : row + 1, :length])
    hook.remove()
    return torch.cat(found)


@pytest.mark.parametrize("family", ALL)
def test_statistics_are_those_of_all_inputs_without_padding(tiny_model, family):
    model = tiny_model(family).double()
    calibration = looking(model, [batch(lengths) for lengths in LENGTHS])
    squares = input_statistics(model, all_units(model), calibration)
    products = input_statistics(model, all_units(model), calibration, pairs=True)
    assert squares.keys() == products.keys() == {one.output for one in all_units(model)}
    for name in squares:
        said = inputs_alone(model, name)
        # ALBERT passes its one block twice.
        assert len(said) == sum(map(sum, LENGTHS)) * (2 if family == "albert" else 1)
        variance = ((said - said.mean(0)) ** 2).mean(0)
        pairs = torch.stack([torch.outer(token, token) for token in said]).mean(0)
        expected = [
            (squares[name].mean, said.mean(0)),
            (squares[name].second_moment, (said**2).mean(0)),
            (squares[name].variance(), variance),
            (products[name].mean, said.mean(0)),
            (products[name].second_moment, pairs),
            (products[name].variance(), variance),
        ]
        for found, wanted in expected:
            assert found.shape == wanted.shape
            assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-12)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_feed_forward_layers_that_read_in_pieces_are_seen_whole(tiny_model, family):
    found = []
    for size in (0, 3):
        model = tiny_model(family, chunk_size_feed_forward=size)
        calibration = looking(model, [batch(lengths) for lengths in LENGTHS])
        found.append(input_statistics(model, all_units(model), calibration, pairs=True))
        sizes = {getattr(module, "chunk_size_feed_forward", size) for module in model.modules()}
        assert sizes == {size}
    whole, pieces = found
    for name in whole:
        assert torch.allclose(whole[name].mean, pieces[name].mean, rtol=1e-5, atol=1e-9)
        assert torch.allclose(
            whole[name].second_moment, pieces[name].second_moment, rtol=1e-5, atol=1e-9
        )


def test_a_model_in_low_precision_is_summed_up_in_float64(tiny_bert):
    model = tiny_bert.bfloat16()
    (units, _) = units_of(model, "neurons")
    calibration = looking(model, [batch(lengths) for lengths in LENGTHS])
    seen = input_statistics(model, [units], calibration)[units.output]
    said = []
    module = model.get_submodule(units.output)
    module.register_forward_pre_hook(lambda _, inputs: said.append(inputs[0]))
    with torch.no_grad():
        for one in calibration.batches:
            calibration.logits(one)
    rows = [s[token_mask(b)] for s, b in zip(said, calibration.batches, strict=True)]
    assert torch.allclose(seen.mean, torch.cat(rows).double().mean(0), rtol=1e-12)


def test_without_a_mask_every_token_counts(tiny_bert):
    full = batch([9, 9, 9])
    units = units_of(tiny_bert, "heads")
    bare = looking(tiny_bert, [{"input_ids": full["input_ids"]}])
    assert bare.tokens() == 9
    found = input_statistics(tiny_bert, units, bare, pairs=True)
    expected = input_statistics(tiny_bert, units, looking(tiny_bert, [full]), pairs=True)
    for name in expected:
        assert torch.allclose(found[name].second_moment, expected[name].second_moment, rtol=1e-5)


def test_the_variance_of_a_constant_is_never_below_zero(tiny_bert):
    model = tiny_bert.double()
    (units, _) = units_of(model, "neurons")
    name = units.inputs[0]
    with torch.no_grad():
        model.get_submodule(name).weight.zero_()
        model.get_submodule(name).bias.copy_(torch.linspace(0.1, 3, 64))
    calibration = looking(model, [batch(lengths) for lengths in LENGTHS])
    seen = input_statistics(model, [units], calibration)[units.output]
    assert (seen.second_moment < seen.mean**2).any()  # by rounding
    variance = seen.variance()
    assert (variance >= 0).all()
    assert variance.max() < 1e-12


def test_examples_are_as_long_as_their_tokens(tiny_bert):
    calibration = looking(tiny_bert, [batch(lengths) for lengths in LENGTHS])
    assert calibration.tokens() == pytest.approx((4 + 9 + 6 + 7 + 3 + 9 + 5) / 7)
