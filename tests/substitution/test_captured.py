from contextlib import ExitStack

import pytest
import torch

from lightning_compress.models import structure_of
from lightning_compress.substitution.captured import capture_block_io, capture_targets, run_block

from ..families import SUBSTITUTABLE


def by_hand(model, name, batch):
    """Input and output of a module when the model runs a batch."""
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
def test_targets_are_outputs_of_the_dense_model(staged_substitution, family):
    staged = staged_substitution(family)
    found = capture_targets(staged.switches, staged.calibration)
    names = structure_of(staged.dense).layers
    for group, last in enumerate((1, 3)):
        for batch, target in zip(staged.calibration.batches, found[group], strict=True):
            assert torch.equal(target, by_hand(staged.dense, names[last], batch)[1])


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_inputs_come_from_the_successors_before(staged_substitution, family):
    staged = staged_substitution(family)
    for switch in staged.switches:
        torch.nn.init.normal_(switch.successor.up.weight)
    targets = capture_targets(staged.switches, staged.calibration)
    assert all(switch.runs_successor for switch in staged.switches)
    names = structure_of(staged.model).layers
    for group, replaced in enumerate(([False, False], [True, False])):
        found = capture_block_io(staged.switches, group, staged.calibration, targets[group])
        assert all(switch.runs_successor for switch in staged.switches)
        with ExitStack() as stack:
            for switch, one in zip(staged.switches, replaced, strict=True):
                stack.enter_context(switch.routed(use_successor=one))
            for io, batch, target in zip(
                found, staged.calibration.batches, targets[group], strict=True
            ):
                name = names[1 + group]
                assert torch.equal(io.hidden, by_hand(staged.model, name, batch)[0])
                assert torch.equal(io.target, target)
                assert torch.equal(io.mask, batch["attention_mask"].bool())
    # The dense model has other inputs behind the first group.
    dense = by_hand(
        staged.dense, structure_of(staged.dense).layers[2], staged.calibration.batches[0]
    )[0]
    assert not torch.allclose(found[0].hidden, dense, atol=1e-2)


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_captured_batches_can_be_run_repeatedly(staged_substitution, family):
    staged = staged_substitution(family)
    targets = capture_targets(staged.switches, staged.calibration)
    found = capture_block_io(staged.switches, 0, staged.calibration, targets[0])
    for io in (*found, *found):
        with torch.no_grad(), staged.switches[0].routed(use_successor=False):
            outputs = run_block(staged.switches[0], io)
        assert torch.allclose(outputs[io.mask], io.target[io.mask], atol=1e-12)


def test_routing_is_restored_after_an_error(staged_substitution):
    staged = staged_substitution()
    staged.calibration.batches[1]["input_ids"][0, 0] = 1000  # no such token
    with staged.switches[0].routed(use_successor=False):
        with pytest.raises(IndexError):
            capture_targets(staged.switches, staged.calibration)
        assert [switch.runs_successor for switch in staged.switches] == [False, True]
    assert not any(switch._forward_hooks for switch in staged.switches)
