import pytest
import torch
from torch import nn

from lightning_compress.models.hooks import after_calls, before_calls, captured


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_captured_keeps_arguments_and_outputs_of_every_call(net):
    batches = list(torch.randn(2, 5, 3))
    with captured([net[0], net[2]]) as (first, last):
        outputs = [net(batch) for batch in batches]
    assert hooks_of(net) == 0
    net(batches[0])
    assert len(first) == len(last) == 2
    for call, batch in zip(first, batches, strict=True):
        assert call.inputs[0] is batch
        assert torch.equal(call.output, net[0](batch))
    assert all(call.output is output for call, output in zip(last, outputs, strict=True))


def test_hooks_replace_arguments_and_outputs(net):
    batch = torch.randn(5, 3)
    with before_calls([(net[0], lambda call: (2 * call.inputs[0],))]):
        assert torch.equal(net(batch), net(batch))
        doubled = net(batch)
    assert torch.equal(doubled, net(2 * batch))
    with after_calls([(net[2], lambda call: -call.output)]):
        negative = net(batch)
    assert torch.equal(negative, -net(batch))


def test_hidden_states_are_found_in_either_kind_of_argument_and_output():
    class Layer(nn.Module):
        def forward(self, hidden_states):
            return hidden_states + 1, "weights"

    layer, states = Layer(), torch.zeros(1, 2, 3)
    with captured([layer]) as (calls,):
        layer(states)
        layer(hidden_states=states)
    assert all(call.hidden is states for call in calls)
    assert all(torch.equal(call.hidden_output, states + 1) for call in calls)


def test_hooks_are_removed_after_an_error(net):
    with pytest.raises(RuntimeError), captured([net[0]]):
        net(torch.randn(5, 7))
    assert hooks_of(net) == 0
