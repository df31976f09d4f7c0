import pytest
import torch

from lightning_compress.distillation.outputs import (
    RequestedOutputs,
    TopK,
    depth_of,
    run_with_outputs,
)
from lightning_compress.models import remove_heads_, structure_of, units_of
from lightning_compress.models.layers import remove_layers_

from ..families import ALL

EVERYTHING = RequestedOutputs(frozenset([0, 1]), frozenset([0, 1]), embedding=True)


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("family", ALL)
def test_capturing_outputs_changes_no_logits_and_leaves_no_hook(with_random_weights, texts, family):
    model = with_random_weights(family)
    inputs = {name: texts()[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(**inputs).logits
        model(**inputs, output_hidden_states=True)  # transformers puts hooks of its own, for good
        before = hooks_of(model)
        for wanted in (EVERYTHING, RequestedOutputs()):
            captured = run_with_outputs(model, texts(), wanted).logits
            assert isinstance(captured, torch.Tensor)
            assert torch.equal(captured, plain)
    assert hooks_of(model) == before
    with pytest.raises(RuntimeError):  # the ids are no numbers of tokens
        run_with_outputs(model, {**texts(), "input_ids": texts()["input_ids"].double()}, EVERYTHING)
    assert hooks_of(model) == before


@pytest.mark.parametrize("family", ALL)
def test_hidden_states_are_those_behind_the_blocks(with_random_weights, texts, family):
    model = with_random_weights(family)
    captured: list[torch.Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output: captured.append(output if output[0].dim() == 2 else output[0])
        )
        for name in structure_of(model).blocks
    ]
    with torch.no_grad():
        found = run_with_outputs(model, texts(), RequestedOutputs(hidden=frozenset([0, 1])))
    for hook in hooks:
        hook.remove()
    assert len(captured) == 2
    assert torch.equal(found.hidden[0], captured[0])
    # The last state is given behind the last norm of models that have one.
    norms = ("ln_f", "norm", "final_norm", "layernorm")
    final = next((n for n in norms if hasattr(model.base_model, n)), None)
    with torch.no_grad():
        last = getattr(model.base_model, final)(captured[1]) if final else captured[1]
    assert torch.equal(found.hidden[1], last)
    assert torch.equal(found.mask, texts()["attention_mask"].bool())


def test_only_requested_outputs_are_captured(with_random_weights, texts):
    model = with_random_weights("bert")
    found = run_with_outputs(model, texts(), RequestedOutputs(frozenset([1]), frozenset([0])))
    assert found.hidden.keys() == {1}
    assert found.attention.keys() == {0}
    assert found.embedding is None
    nothing = run_with_outputs(model, texts(), RequestedOutputs())
    assert not nothing.hidden
    assert not nothing.attention
    assert nothing.embedding is None


def test_without_a_mask_all_are_tokens(with_random_weights):
    found = run_with_outputs(
        with_random_weights("bert"), {"input_ids": torch.tensor([[5, 6, 0]])}, RequestedOutputs()
    )
    assert found.mask.tolist() == [[True, True, True]]
    assert found.mask.dtype == torch.bool


@pytest.mark.parametrize("removed", [[], [1, 3]])
@pytest.mark.parametrize("family", ALL)
def test_projections_have_the_widths_of_the_remaining_heads(
    with_random_weights, texts, family, removed
):
    model = with_random_weights(family)
    remove_heads_(model, {0: removed})
    found = run_with_outputs(model, texts(), EVERYTHING).attention[0]
    left = 4 - len(removed)
    # With grouped-query attention, eight query heads share four key-value heads.
    shared = 2 if hasattr(model.config, "num_key_value_heads") else 1
    size = getattr(model.config, "head_dim", None) or 8 // shared
    queries = shared * left
    assert units_of(model, "heads")[0].count == left
    assert found.heads == queries
    assert found.query.shape == (4, 9, queries * size)
    assert found.key.shape == found.value.shape == (4, 9, left * size)


def test_depth_is_that_after_layer_removal(with_random_weights):
    assert depth_of(with_random_weights("albert", num_hidden_layers=5)) == 5
    model = with_random_weights("gpt2", num_hidden_layers=3)
    assert depth_of(model) == 3
    remove_layers_(model, [1])
    assert depth_of(model) == 2


def test_what_either_wants():
    one, other = (
        RequestedOutputs(frozenset([1]), frozenset([0])),
        RequestedOutputs(frozenset([2]), embedding=True),
    )
    assert one | other == RequestedOutputs(frozenset([1, 2]), frozenset([0]), embedding=True)
    assert one | RequestedOutputs() == one


def test_some_rows_of_the_largest_logits():
    values = torch.arange(24.0).reshape(2, 4, 3)
    rows = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).bool()
    found = TopK(values, values.int(), {1.0: values[..., 0], 2.0: values[..., 1]})[rows]
    assert found.values.tolist() == [[0, 1, 2], [9, 10, 11], [15, 16, 17]]
    assert torch.equal(found.indices, found.values.int())
    assert found.logsumexp[1.0].tolist() == [0, 9, 15]
    assert found.logsumexp[2.0].tolist() == [1, 10, 16]
