"""Each family in a few words: what is removed is gone, and the rest says the same everywhere."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_compress import load_compressed, save_compressed
from lightning_compress.compression_state import compression_state, restore_compression_
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_, remove_layers_, remove_neurons_, units_of
from lightning_compress.models.layers import skipped
from lightning_compress.pruning.gate_gradients import gated

from ..families import SLOW, randomize_, tiny_language_model, tiny_model

HEADS, NEURONS = {0: [1, 3], 1: [0], 2: [2]}, {0: [0, 5, 63], 1: list(range(1, 64, 2)), 2: [7]}
TOKENS = (5, 9, 7)  # of three examples


def logits(model: Any, *, whole: bool = True) -> Tensor:
    """Of three examples [3, C], in one padded batch or each by itself."""
    ids = torch.randint(2, 100, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor(TOKENS)[:, None]).long()
    with torch.no_grad():
        if whole:
            found: Tensor = model(input_ids=ids * mask, attention_mask=mask).logits
            return found
        return torch.cat([
            model(input_ids=row[None, :count], attention_mask=torch.ones(1, count).long()).logits
            for row, count in zip(ids, TOKENS, strict=True)
        ])  # fmt: skip


def prune_(model: Any) -> None:
    remove_heads_(model, HEADS)
    remove_neurons_(model, NEURONS)


@pytest.mark.parametrize("model_type", SLOW)
def test_what_is_gated_and_skipped_is_what_is_removed(model_type: str) -> None:
    model = randomize_(tiny_model(model_type, num_hidden_layers=4)).double()
    smaller, dense = copy.deepcopy(model), logits(model)
    gates = {}
    for kind, removed in (("heads", HEADS), ("neurons", NEURONS)):
        for units in units_of(model, kind):  # type: ignore[arg-type]
            gates[units.output] = torch.ones(units.count, dtype=torch.float64)
            gates[units.output][removed.get(units.layer, [])] = 0
    with gated(model, gates), skipped(model, [0, 2]):
        found = logits(model)
    prune_(smaller)
    remove_layers_(smaller, [0, 2])
    torch.testing.assert_close(logits(smaller), found, rtol=0, atol=1e-10)
    assert not torch.allclose(found, dense, rtol=0, atol=1e-3)
    # Neither padding nor the other examples of a batch matter.
    torch.testing.assert_close(logits(smaller, whole=False), found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model_type", SLOW)
def test_heads_removed_in_two_steps_are_those_removed_at_once(model_type: str) -> None:
    once, twice = (randomize_(tiny_model(model_type)) for _ in range(2))
    remove_heads_(once, {0: [0, 2]})
    remove_heads_(twice, {0: [0]})
    remove_heads_(twice, {0: [1]})
    assert torch.equal(logits(once), logits(twice))


@pytest.mark.parametrize("removed", [[0], [1], [0, 1], [1, 2, 3]], ids=str)
def test_layers_of_modernbert_keep_their_kinds(removed: list[int], tmp_path: Any) -> None:
    model = randomize_(tiny_model("modernbert", num_hidden_layers=5))
    kinds = [layer.attention_type for layer in model.model.layers]
    assert len(set(kinds)) == 2
    kept = [layer for layer in range(5) if layer not in removed]
    remove_layers_(model, removed)
    expected = logits(model)
    loaded = load_compressed(save_compressed(model, tmp_path / "model"))
    restored = tiny_model("modernbert", num_hidden_layers=5)
    restore_compression_(restored, compression_state(model))
    restored.load_state_dict(model.state_dict())
    for one in (loaded, restored):
        assert torch.equal(logits(one), expected)
        layers = one.model.layers
        assert [layer.attention_type for layer in layers] == [kinds[layer] for layer in kept]
        assert isinstance(layers[0].attn_norm, torch.nn.Identity) == (0 not in removed)
        assert [layer.attn.layer_idx for layer in layers] == list(range(len(kept)))
    # A smaller model takes the layers of the whole one again.
    dense = randomize_(tiny_model("modernbert", num_hidden_layers=5), seed=3)
    restore_compression_(restored, compression_state(dense))
    restored.load_state_dict(dense.state_dict())
    assert torch.equal(logits(restored), logits(dense))


@pytest.mark.parametrize("options", [{"share_att_key": True}, {"pos_att_type": ["p2c"]}], ids=str)
def test_positions_of_deberta_follow_its_heads(options: dict[str, Any], tmp_path: Any) -> None:
    model = randomize_(tiny_model("deberta-v2", num_hidden_layers=3, **options)).double()
    gates = {
        units.output: torch.ones(units.count, dtype=torch.float64).index_fill(
            0, torch.tensor(HEADS[units.layer]), 0
        )
        for units in units_of(model, "heads")
    }
    with gated(model, gates):
        found = logits(model)
    remove_heads_(model, HEADS)
    torch.testing.assert_close(logits(model), found, rtol=0, atol=1e-10)
    loaded = load_compressed(save_compressed(model, tmp_path / "model"))
    torch.testing.assert_close(logits(loaded), found, rtol=0, atol=1e-10)


def test_a_convolution_behind_the_first_layer_keeps_all_layers() -> None:
    model = tiny_model("deberta-v2", num_hidden_layers=3, conv_kernel_size=3)
    prune_(model)
    with pytest.raises(InputError, match=r"config\.conv_kernel_size makes layers depend"):
        remove_layers_(model, [0])


WINDOW = {"sliding_window": 4}
SOME_WINDOWS = {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}
DECODERS = {"mistral": WINDOW, "qwen2": SOME_WINDOWS, "qwen3": SOME_WINDOWS, "gemma": {}}


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_smaller_decoder_generates_as_without_a_cache(model_type: str, tmp_path: Any) -> None:
    options = {"head_dim": 8, **DECODERS[model_type]}  # heads together are wider than the model
    model: Any = randomize_(tiny_language_model(model_type, num_hidden_layers=4, **options))
    prune_(model)
    remove_layers_(model, [0, 2])
    loaded: Any = load_compressed(save_compressed(model, tmp_path / "model"))
    ids = torch.arange(5, 17)[None]
    said = [
        one.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            use_cache=use_cache, pad_token_id=0, eos_token_id=None,
        )
        for one, use_cache in ((model, True), (model, False), (loaded, True))
    ]  # fmt: skip
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


@pytest.mark.parametrize("model_type", SLOW)
def test_moments_follow_their_weights(model_type: str) -> None:
    model = tiny_model(model_type, num_hidden_layers=4)
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():  # each moment is that of its weight, whatever comes
        optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg": weight.detach().clone()}
    remove_heads_(model, HEADS, optimizers=[optimizer])
    remove_neurons_(model, NEURONS, optimizers=[optimizer])
    remove_layers_(model, [1], optimizers=[optimizer])
    weights = list(model.parameters())
    assert {id(w) for w in weights} == {id(w) for w in optimizer.param_groups[0]["params"]}
    assert len(optimizer.state) == len(weights)
    assert all(torch.equal(optimizer.state[w]["exp_avg"], w) for w in weights)
