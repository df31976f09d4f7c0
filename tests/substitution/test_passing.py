import pytest
import torch

from lightning_compress.models import structure_of
from lightning_compress.substitution.captured import dense_outputs, passages, through

from ..families import SUBSTITUTABLE


def by_hand(model, name, batch):
    """What goes into a module and what comes out of it when the model reads a batch."""
    seen = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, keywords, output: seen.append(
            (inputs[0] if inputs else keywords["hidden_states"], output)
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**batch)
    hook.remove()
    ((before, after),) = seen
    return before, after


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_targets_are_what_the_dense_model_says(scene, family):
    it = scene(family)
    found = dense_outputs(it.choices, it.calibration)
    names = structure_of(it.dense).layers
    for group, last in enumerate((1, 3)):
        for batch, target in zip(it.calibration.batches, found[group], strict=True):
            assert torch.equal(target, by_hand(it.dense, names[last], batch)[1])


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_inputs_have_passed_the_compact_blocks_before(scene, family):
    it = scene(family)
    for choice in it.choices:
        torch.nn.init.normal_(choice.new.up.weight)
    targets = dense_outputs(it.choices, it.calibration)
    assert all(choice.replaced for choice in it.choices)
    names = structure_of(it.model).layers
    for group, replaced in enumerate(([False, False], [True, False])):
        found = passages(it.choices, group, it.calibration, targets[group])
        assert all(choice.replaced for choice in it.choices)
        for choice, one in zip(it.choices, replaced, strict=True):
            choice.replaced = one
        for passage, batch, target in zip(
            found, it.calibration.batches, targets[group], strict=True
        ):
            name = names[1 + group]
            assert torch.equal(passage.hidden, by_hand(it.model, name, batch)[0])
            assert torch.equal(passage.target, target)
            assert torch.equal(passage.mask, batch["attention_mask"].bool())
        for choice in it.choices:
            choice.replaced = True
    # The dense model has other inputs behind the first group.
    dense = by_hand(it.dense, structure_of(it.dense).layers[2], it.calibration.batches[0])[0]
    assert not torch.allclose(found[0].hidden, dense, atol=1e-2)


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_a_passage_goes_through_the_layers_as_often_as_one_likes(scene, family):
    it = scene(family)
    targets = dense_outputs(it.choices, it.calibration)
    found = passages(it.choices, 0, it.calibration, targets[0])
    it.choices[0].replaced = False
    for passage in (*found, *found):
        with torch.no_grad():
            said = through(it.choices[0], passage)
        assert torch.allclose(said[passage.mask], passage.target[passage.mask], atol=1e-12)


def test_ways_are_as_before_after_an_error(scene):
    it = scene()
    it.choices[0].replaced = False
    it.calibration.batches[1]["input_ids"][0, 0] = 1000  # no such token
    with pytest.raises(IndexError):
        dense_outputs(it.choices, it.calibration)
    assert [choice.replaced for choice in it.choices] == [False, True]
    assert not any(choice._forward_hooks for choice in it.choices)
