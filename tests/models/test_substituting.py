"""Compact blocks in the place of layers: what the model then says, costs, keeps and loses."""

import copy
import functools
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, BertTokenizer

from lightning_compress.compression_state import compression_state, restore_compression_
from lightning_compress.distillation.outputs import (
    RequestedOutputs,
    depth_of,
    heads_of,
    run_with_outputs,
)
from lightning_compress.errors import InputError
from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.models import (
    apply_masks_,
    manifest_of,
    remove_heads_,
    remove_neurons_,
    set_masks_,
    structure_of,
    units_of,
)
from lightning_compress.models.layers import remove_layers_, skipped
from lightning_compress.models.masks import masks_of
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.removal import surviving_units
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import (
    finalize_substitution_,
    insert_switches_,
    substitute_layers_,
    switches_of,
)

from ..families import SLOW, SUBSTITUTABLE
from .conftest import IDS

MODELS = [*SUBSTITUTABLE, "gpt2-lm"]
GROUPS = [[1], [3, 4]]


def lively_(model, seed=2):
    """Weights as large as after training, no two layers alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            size = 0.1 + 0.2 * torch.rand((), generator=generator)
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return model.eval()


@pytest.fixture
def deep(tiny_model):
    """Builds a model of six layers; ``-lm``: a language model."""

    def build(name="bert", layers=6, **changes):
        family = name.removesuffix("-lm")
        model = tiny_model(family, num_hidden_layers=layers, **changes)
        if name.endswith("-lm"):
            config = AutoConfig.for_model(**model.config.to_dict())
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config)
            model.set_attn_implementation(changes.get("attn_implementation", "sdpa"))
        return lively_(model)

    return build


@pytest.fixture
def substituted(deep):
    """Builds a model whose layers 1 and 3 to 4 are compact blocks of random weights."""

    def build(name="bert", width=16, depth=2, heads=2, **changes):
        model = deep(name, **changes)
        substitute_layers_(model, GROUPS, width=width, depth=depth, heads=heads)
        return lively_(model, seed=3)

    return build


def batch(tokens=9):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([4, 9, 6, 7])[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return {name: functional.pad(value, (0, tokens - 9)) for name, value in inputs.items()}


def logits(model, **inputs):
    with torch.no_grad():
        return model(**(inputs or batch())).logits


def of_texts(model, **inputs):
    """What is said of each text, without what a language model says at padding."""
    inputs = inputs or batch()
    said = logits(model, **inputs)
    if said.dim() == 2:
        return list(said)
    return [one[mask.bool()] for one, mask in zip(said, inputs["attention_mask"], strict=True)]


def compact_blocks(model):
    return [module for module in model.modules() if isinstance(module, CompactBlock)]


def assert_alike(found, wanted, tolerance=1e-5):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_at_first_it_says_what_it_would_without_the_layers(deep, name):
    model, whole = deep(name).double(), deep(name).double()
    substitute_layers_(model, GROUPS, width=16, depth=2)
    with skipped(whole, [1, 3, 4]):
        wanted = logits(whole)
    assert torch.allclose(logits(model), wanted, rtol=0, atol=1e-10)
    assert not torch.allclose(logits(whole), wanted, rtol=0, atol=1e-3)
    assert len(structure_of(model).layers) == 5
    assert len(compact_blocks(model)) == 2


@pytest.mark.parametrize("name", MODELS)
def test_texts_stay_alone_whatever_the_batch_its_order_and_its_padding(substituted, name):
    model = substituted(name).double()
    together = of_texts(model)
    alone = [
        {key: value[row : row + 1, :length] for key, value in batch().items()}
        for row, length in enumerate([4, 9, 6, 7])
    ]
    assert_alike([of_texts(model, **one)[0] for one in alone], together, 1e-10)
    assert_alike(of_texts(model, **batch(tokens=15)), together, 1e-10)
    order = [2, 0, 3, 1]
    shuffled = of_texts(model, **{key: value[order] for key, value in batch().items()})
    assert_alike(shuffled, [together[row] for row in order], 1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_a_compact_block_says_something(substituted, name):
    model = substituted(name)
    said = logits(model)
    with skipped(model, [1]):
        assert not torch.allclose(logits(model), said, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("built", ["eager", "sdpa"])
def test_every_way_to_compute_attention_says_the_same(substituted, name, built):
    # Whichever was set when the narrow layers were made.
    model = substituted(name, attn_implementation=built)
    assert model.config._attn_implementation == built
    said = of_texts(model)
    model.set_attn_implementation({"eager": "sdpa", "sdpa": "eager"}[built])
    assert_alike(of_texts(model), said, 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(("name", "backend"), [("bert", "inductor"), ("gpt2", "aot_eager")])
def test_a_compiled_one_says_the_same(deep, name, backend):
    model = deep(name, layers=2)
    substitute_layers_(model, [[1]], width=16)
    lively_(model, seed=3)
    said = logits(model)
    compiled = torch.compile(model, backend=backend)
    assert torch.allclose(logits(compiled), said, atol=1e-4)


def test_a_later_token_changes_nothing_before_it(substituted):
    model = substituted("gpt2-lm").double()
    changed = IDS.clone()
    changed[:, 5] = 77
    one, other = (logits(model, input_ids=ids) for ids in (IDS, changed))
    assert torch.allclose(one[:, :5], other[:, :5], rtol=0, atol=1e-12)
    assert not torch.allclose(one[:, 5:], other[:, 5:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 3])
def test_generation_with_and_without_the_cache_agree(deep, depth):
    model = deep("gpt2-lm")
    substitute_layers_(model, [[0, 1], [3]], width=16, depth=depth)
    lively_(model, seed=3)
    generate = functools.partial(
        model.generate, IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=10,
        min_new_tokens=10, do_sample=False,
    )  # fmt: skip
    assert torch.equal(generate(use_cache=True), generate(use_cache=False))


@pytest.mark.parametrize("family", SUBSTITUTABLE)
def test_it_is_down_narrow_layers_up_and_the_input_beside_them(substituted, family):
    model = substituted(family)
    name = structure_of(model).layers[1]
    block = model.get_submodule(name)
    seen = []
    hook = block.register_forward_hook(
        lambda module, inputs, keywords, output: seen.append((inputs, keywords, output)),
        with_kwargs=True,
    )
    model.config.use_cache = False  # for a cache would remember the first of two calls
    logits(model)
    hook.remove()
    (hidden, *rest), keywords, output = seen[0]
    small = hidden @ block.down.weight.T + block.down.bias
    with torch.no_grad():
        for layer in block.layers:
            small = layer(small, *rest, **keywords)
    if family == "gpt2":
        centred = small - small.mean(-1, keepdim=True)
        small = centred / (small.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        small = small * block.norm.weight + block.norm.bias
    wanted = hidden + small @ block.up.weight.T + block.up.bias
    assert torch.allclose(output, wanted, atol=1e-4)
    assert type(block.layers[0]) is type(model.get_submodule(structure_of(model).blocks[0]))
    assert small.shape[-1] == 16


def block_parameters(width, inner):
    """Of a layer: four projections and two of the feed-forward layer, with biases, two norms."""
    return 4 * (width * width + width) + (2 * width * inner + inner + width) + 4 * width


def block_macs(width, inner, tokens):
    return tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("width", "depth"), [(8, 1), (16, 2), (32, 1)])
def test_parameters_and_multiplications_are_those_of_the_formula(deep, name, width, depth):
    model = deep(name)
    parameters, macs = count_parameters(model)[0], count_macs(model, {"input_ids": IDS})
    substitute_layers_(model, GROUPS, width=width, depth=depth, heads=2)
    norm = 2 * width if name.startswith("gpt2") else 0
    added = depth * block_parameters(width, 4 * width) + 2 * 32 * width + width + 32 + norm
    parameters += 2 * added - 3 * block_parameters(32, 64)
    assert count_parameters(model)[0] == parameters
    added = depth * block_macs(width, 4 * width, 8) + 2 * 32 * width * 8
    macs += 2 * added - 3 * block_macs(32, 64, 8)
    assert count_macs(model, {"input_ids": IDS}) == macs


def test_the_size_of_a_bachelor_thesis(tiny_model):
    # 768 wide and 128 narrow, two narrow layers: 594,048 parameters; 7,087,872 of a layer.
    model = tiny_model("bert", hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    before = count_parameters(model)[0]
    substitute_layers_(model, [[0]], width=128, depth=2)
    assert count_parameters(model)[0] == before - 7_087_872 + 594_048
    assert units_of(model, "heads")[0].count == 2


@pytest.mark.parametrize(
    ("width", "heads"), [(8, 2), (16, 2), (24, 3), (32, 4), (20, 2)]
)  # heads of the model's own size, 8, where several fit
def test_narrow_heads_have_the_size_of_wide_ones(deep, width, heads):
    model = deep()
    substitute_layers_(model, [[2]], width=width)
    assert [one.count for one in units_of(model, "heads")] == [4, 4, heads, 4, 4, 4]


def test_all_layers_can_be_compact_blocks(deep):
    model, whole = deep(), deep()
    substitute_layers_(model, [[0, 1], [2], [3, 4, 5]], width=8)
    with skipped(whole, range(6)):
        assert torch.allclose(logits(model), logits(whole), atol=1e-6)
    assert model.config.num_hidden_layers == 3


def test_the_manifest_tells(substituted):
    assert manifest_of(substituted(depth=3)) == [
        {
            "edit": "substitute_layers", "technique": "substitute_layers", "groups": GROUPS,
            "depth": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64,
        }
    ]  # fmt: skip


# --- saved and loaded


@pytest.mark.slow
def test_every_family_loads_bit_equal_elsewhere_with_and_without_this_package(
    substituted, assert_same_elsewhere
):
    models = {name: substituted(name) for name in MODELS if name not in SLOW}
    assert_same_elsewhere({**models, "pruned": pruned_before_and_after(substituted)})


def pruned_before_and_after(substituted):
    model = substituted("bert")
    remove_heads_(model, {0: [1], 2: [0]})
    remove_neurons_(model, {1: range(40), 5: [3]})
    remove_layers_(model, [2])
    substitute_layers_(model, [[3]], width=24)
    return lively_(model, seed=5)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_loads_here(substituted, name, tmp_path):
    model = substituted(name)
    model.save_pretrained(tmp_path / "plain")  # notes the class in the configuration
    before = copy.deepcopy(vars(model.config))
    folder = save_compressed(model, tmp_path / "m")
    assert vars(model.config) == before
    loaded = load_compressed(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert manifest_of(loaded) == manifest_of(model)
    assert not loaded.training
    again = load_compressed(save_compressed(loaded, tmp_path / "m"))
    assert torch.equal(logits(again), logits(model))
    for attention in ("eager", "sdpa"):
        for one in (loaded, model):
            one.set_attn_implementation(attention)
        assert torch.equal(logits(loaded), logits(model))


def test_a_folder_holds_the_tokenizer_and_no_pickle(substituted, text_files, tmp_path):
    tokenizer = BertTokenizer.from_pretrained(text_files / "tokenizer")
    folder = save_compressed(substituted(), tmp_path / "m", tokenizer)
    assert BertTokenizer.from_pretrained(folder).vocab_size == tokenizer.vocab_size
    suffixes = {file.suffix for file in folder.iterdir()}
    assert suffixes <= {".json", ".safetensors", ".py", ".txt"}


def test_dropout_of_a_loaded_one_can_be_set_also_of_its_narrow_layers(substituted, tmp_path):
    folder = save_compressed(substituted(), tmp_path / "m")
    model = load_compressed(folder, hidden_dropout_prob=0.3)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert 0.3 in rates
    narrow = compact_blocks(model)[0].layers[0]
    assert narrow.output.dropout.p == 0.3


def staged(model, groups=GROUPS, **options):
    defaults = {"width": 16, "depth": 2, "heads": 2, "technique": "test"}
    insert_switches_(model, groups, **{**defaults, **options})
    return lively_(model, seed=3)


@pytest.mark.parametrize("name", ["bert", "gpt2-lm"])
def test_side_by_side_either_way_can_be_gone(deep, name):
    whole, model = deep(name), deep(name)
    insert_switches_(model, GROUPS, width=16, depth=2, heads=2, technique="test")
    with ExitStack() as stack:
        for switch in switches_of(model):
            stack.enter_context(switch.routed(use_successor=False))
        assert torch.equal(logits(model), logits(whole))
    lively_(model, seed=3)
    said = logits(model)
    finalize_substitution_(model)
    assert torch.equal(logits(model), said)
    assert not switches_of(model)
    finalize_substitution_(model)  # nothing is left to settle
    assert torch.equal(logits(model), said)


def test_what_is_saved_of_both_side_by_side_is_the_compact_blocks(deep, tmp_path):
    model = staged(deep())
    folder = save_compressed(model, tmp_path / "m")
    assert len(switches_of(model)) == 2  # the model itself stays
    loaded = load_compressed(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert not switches_of(loaded)
    assert not any(".predecessor." in name for name in loaded.state_dict())
    finalize_substitution_(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert manifest_of(loaded) == manifest_of(model)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2-lm"])
def test_any_model_takes_the_shapes_of_a_checkpoint(deep, substituted, name):
    models = {
        "dense": deep(name),
        "staged": staged(deep(name)),
        "settled": substituted(name),
        "other": staged(deep(name), [[0], [2, 3]], width=8, depth=1),
    }
    for source in models.values():
        for kind in models:
            target = copy.deepcopy(models[kind])
            for _ in range(2):
                restore_compression_(target, compression_state(source))
            target.load_state_dict(source.state_dict())
            assert torch.equal(logits(target), logits(source))
            assert manifest_of(target) == manifest_of(source)
            assert target.config.num_hidden_layers == source.config.num_hidden_layers
            assert len(switches_of(target)) == len(switches_of(source))
            # In the same order, for optimizers know parameters by their place.
            names = [[key for key, _ in one.named_parameters()] for one in (source, target)]
            assert names[0] == names[1]


def test_the_state_takes_parameters_that_stay_as_they_are(substituted):
    model, parameters = substituted(), None
    parameters = dict(model.named_parameters())
    restore_compression_(model, compression_state(model))
    assert all(model.get_parameter(name) is weight for name, weight in parameters.items())


def test_old_layers_are_not_trained_and_leave_the_optimizer(deep):
    model = staged(deep())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    assert not any(
        weight.requires_grad for name, weight in model.named_parameters() if ".predecessor." in name
    )
    moments = {id(weight): optimizer.state[weight]["exp_avg"] for weight in optimizer.state}
    finalize_substitution_(model, [optimizer])
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert [id(weight) for weight in trained] == [id(weight) for weight in model.parameters()]
    assert {id(weight) for weight in optimizer.state} == {id(weight) for weight in trained}
    for weight in trained:
        assert optimizer.state[weight]["exp_avg"] is moments[id(weight)]
    model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()


# --- together with pruning

NAME = "bert.encoder.layer.{}.output.dense.weight"


def test_masks_follow_the_layers(deep):
    model = deep()
    masks = {NAME.format(layer): torch.rand(32, 64) > 0.5 for layer in (0, 1, 2, 5)}
    set_masks_(model, masks, technique="test")
    insert_switches_(model, GROUPS, width=16, depth=2, heads=2, technique="test")
    old = "bert.encoder.layer.1.predecessor.0.output.dense.weight"
    assert torch.equal(masks_of(model)[old], masks[NAME.format(1)])
    narrow = "bert.encoder.layer.{}.layers.0.output.dense.weight"
    between = narrow.format(1).replace("layers.0", "successor.layers.0")
    set_masks_(model, {**masks_of(model), between: torch.rand(16, 64) > 0.5})
    mask = masks_of(model)[between]
    finalize_substitution_(model)
    assert masks_of(model).keys() == {
        *(NAME.format(layer) for layer in (0, 2, 4)),
        narrow.format(1),
    }
    for now, before in ((0, 0), (2, 2), (4, 5)):
        assert torch.equal(masks_of(model)[NAME.format(now)], masks[NAME.format(before)])
    assert torch.equal(masks_of(model)[narrow.format(1)], mask)
    for name, one in masks_of(model).items():
        assert (model.get_parameter(name)[~one] == 0).all()
    edits = {edit["edit"]: edit for edit in manifest_of(model)}
    assert edits["mask_weights"]["technique"] == "test"


def test_a_masked_model_of_which_only_masked_layers_go(deep, tmp_path):
    model = deep()
    set_masks_(model, {NAME.format(1): torch.rand(32, 64) > 0.5}, technique="test")
    substitute_layers_(model, [[1]], width=16)
    assert masks_of(model) == {}
    loaded = load_compressed(save_compressed(model, tmp_path / "m"))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2-lm"])
def test_a_pruned_model_can_be_substituted(deep, name, tmp_path):
    model = deep(name)
    remove_heads_(model, {0: [1], 1: [2, 3], 4: [0]})
    remove_neurons_(model, {0: range(20), 3: range(60)})
    remove_layers_(model, [2])
    weight = structure_of(model).linear_names()[-1] + ".weight"
    leaf = weight.removeprefix(structure_of(model).blocks[-1])
    set_masks_(model, {weight: torch.rand(model.get_parameter(weight).shape) > 0.5})
    whole = copy.deepcopy(model)
    substitute_layers_(model, [[1], [2, 3]], width=16)
    with skipped(whole, [1, 2, 3]):
        assert torch.allclose(logits(model), logits(whole), atol=1e-6)
    lively_(model, seed=3)
    apply_masks_(model)
    (mask,) = masks_of(model).values()  # of the layer that was the last and still is
    loaded = load_compressed(save_compressed(model, tmp_path / "m"))
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(masks_of(loaded)[structure_of(loaded).blocks[-1] + leaf], mask)
    dense = deep(name)
    restore_compression_(dense, compression_state(loaded))
    dense.load_state_dict(loaded.state_dict())
    assert torch.equal(logits(dense), logits(loaded))


@pytest.mark.parametrize("name", MODELS)
def test_it_can_be_pruned(substituted, name):
    model = substituted(name)
    assert [one.count for one in units_of(model, "heads")] == [4, 2, 2, 4, 2, 2, 4]
    assert [one.count for one in units_of(model, "neurons")] == [64] * 7
    before = compact_blocks(model)[0].layers[1]
    heads = {1: [0], 2: [1], 6: [0, 2]}
    silent = copy.deepcopy(model)
    for layer, gone in heads.items():
        module = silent.get_submodule(units_of(silent, "heads")[layer].output)
        columns = module.weight.data.T if isinstance(module, nn.Linear) else module.weight.data
        for head in gone:
            columns[8 * head : 8 * head + 8] = 0
    remove_heads_(model, heads)
    assert_alike(of_texts(model), of_texts(silent), 1e-4)
    remove_neurons_(model, {1: range(10), 5: range(50)})
    assert [one.count for one in units_of(model, "neurons")] == [64, 54, 64, 64, 64, 14, 64]
    remove_layers_(model, [1])
    assert before not in list(model.modules())
    assert [one.count for one in units_of(model, "heads")] == [4, 4, 2, 2, 2]
    assert model.config.num_hidden_layers == 5
    of_texts(model)


def test_projections_count_as_weights_of_the_layers(substituted):
    model = substituted()
    names = structure_of(model).linear_names()
    layers = "bert.encoder.layer."
    inside = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(layers)
    }
    assert set(names) == inside
    assert f"{layers}1.down" in names
    assert f"{layers}3.up" in names
    assert len(set(names)) == len(names)


def test_a_substituted_model_can_be_substituted_further(substituted, deep):
    model = substituted(depth=1)
    substitute_layers_(model, [[2]], width=8)
    assert [one.count for one in units_of(model, "heads")] == [4, 2, 2, 2, 4]
    for group in ([1], [2], [3]):
        with pytest.raises(InputError, match=rf"layer {group[0]} of .* is a compact block already"):
            substitute_layers_(model, [group], width=8)
    with pytest.raises(InputError, match=r"layer 1 of .* is a compact block already"):
        substitute_layers_(staged(deep()), [[1, 2]], width=8)


def test_history_counts_from_the_blocks_there_were_once_layers_were_substituted(substituted, deep):
    model = deep()
    remove_heads_(model, {0: [0]})
    remove_layers_(model, [5])
    substitute_layers_(model, [[1], [3]], width=16, depth=2, heads=2)
    full, narrow = [0, 1, 2, 3], [0, 1]
    wanted = [[0, 1, 2], narrow, narrow, full, narrow, narrow, full]
    assert surviving_units(model, "heads") == wanted
    remove_heads_(model, {2: [0], 3: [1, 2]})
    remove_layers_(model, [1, 4])  # a compact block, and the last layer
    remove_heads_(model, {2: [1]})
    assert surviving_units(model, "heads") == [[0, 1, 2], None, None, [0, 3], [0], narrow, None]
    assert [len(one or []) for one in surviving_units(model, "neurons")] == [
        64,
        0,
        0,
        64,
        64,
        64,
        0,
    ]


def lengths(model):
    return [len(heads or []) for heads in surviving_units(model, "heads")]


def test_history_of_what_was_pruned_beside_old_layers(deep):
    model = staged(deep())
    assert lengths(model) == [4, 2, 2, 4, 2, 2, 4]  # none of those that will leave
    remove_heads_(model, {1: [0], 3: [1]})
    for _ in range(2):
        assert surviving_units(model, "heads")[1:4] == [[1], [0, 1], [0, 2, 3]]
        assert [one.count for one in units_of(model, "heads")] == [4, 1, 2, 3, 2, 2, 4]
        finalize_substitution_(model)


# --- looked at by distillation


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_one_to_a_layer_and_of_full_width(substituted, name):
    model = substituted(name)
    said = []
    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output: said.append(output)
        )
        for layer in structure_of(model).layers
    ]
    assert depth_of(model) == 5
    found = run_with_outputs(
        model, batch(), RequestedOutputs(frozenset(range(5)), frozenset([0, 1, 4]), True)
    )
    for hook in hooks:
        hook.remove()
    assert isinstance(found.logits, torch.Tensor)
    assert found.embedding is not None
    assert torch.equal(found.logits, logits(model))
    for layer in range(4):
        assert torch.equal(found.hidden[layer], said[layer])
    last = model.transformer.ln_f(said[4]) if name.startswith("gpt2") else said[4]
    assert torch.equal(found.hidden[4], last)
    mask = batch()["attention_mask"][..., None]
    assert torch.allclose(found.embedding, (last * mask).sum(1) / mask.sum(1), atol=1e-6)
    assert {layer: one.query.shape[-1] for layer, one in found.attention.items()} == {
        0: 32, 1: 16, 4: 32
    }  # fmt: skip
    assert [found.attention[layer].heads for layer in (0, 1, 4)] == [4, 2, 4]
    assert sum(hidden.requires_grad for hidden in found.hidden.values()) == 5


@pytest.mark.parametrize("replaced", [True, False])
def test_beside_old_layers_the_way_that_is_gone_is_looked_at(deep, replaced):
    model = staged(deep())
    switch = switches_of(model)[1]
    said = []
    way = switch.successor if replaced else switch.predecessor[-1]
    way.register_forward_hook(lambda _, inputs, output: said.append(output))
    requested = RequestedOutputs(frozenset([3]), frozenset([1, 3, 4]))
    with switch.routed(use_successor=replaced):
        found = run_with_outputs(model, batch(), requested)
        heads = [one.count for one in heads_of(model)]
    assert torch.equal(found.hidden[3], said[0])
    assert heads == [4, 2, 4, 2 if replaced else 4, 4]
    assert found.attention[3].heads == (2 if replaced else 4)
    assert found.attention[4].heads == 4


def test_asking_for_nothing_leaves_no_hook(substituted):
    model = substituted()
    before = sum(len(module._forward_hooks) for module in model.modules())
    run_with_outputs(model, batch(), RequestedOutputs(frozenset([1]), frozenset([1]), True))
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


# --- what cannot be


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([[1], [2, 1]], {}, "layer 1 of .* is given twice"),
        ([[1, 1]], {}, "layer 1 of .* is given twice"),
        ([[6]], {}, "no layer 6: they are counted from 0 to 5"),
        ([[-1]], {}, "no layer -1"),
        ([[1, 3]], {}, r"layers \[1, 3\] do not follow one another: give them as several groups"),
        ([[3, 2]], {}, r"layers \[3, 2\] do not follow one another"),
        ([], {}, "no layer to substitute: name some in groups"),
        ([[1], []], {}, "no layer to substitute"),
        ([[1]], {"heads": 3}, "width is 16, which is no multiple of 3 heads"),
        ([[1]], {"heads": 0}, "no multiple of 0 heads"),
        ([[1]], {"width": 15}, "width is 15, which is no multiple of 2 heads"),
        ([[1]], {"width": 33}, "width is 33: it lies between 1 and the model's, 32"),
        ([[1]], {"width": 0}, "width is 0: it lies between 1"),
        ([[1]], {"depth": 0}, "depth must be at least 1, not 0"),
    ],
)
def test_what_is_refused_leaves_the_model_alone(deep, groups, options, message):
    model = deep()
    before = dict(model.named_parameters())
    with pytest.raises(InputError, match=message):
        substitute_layers_(model, groups, **{"width": 16, **options})
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is weight for name, weight in before.items())
    assert manifest_of(model) == []
    assert model.config.num_hidden_layers == 6


@pytest.mark.parametrize("family", ["albert", "llama"])
def test_a_family_whose_layers_cannot_be_narrow_is_refused(tiny_model, family):
    message = r"layers of .* cannot be made narrow; those of these .* distilbert, electra, gpt2"
    with pytest.raises(InputError, match=message):
        substitute_layers_(tiny_model(family), [[0]], width=8)


def test_layers_that_know_more_than_their_input_are_refused(deep):
    for model in (
        deep("gpt2", scale_attn_by_inverse_layer_idx=True),
        deep("bert", is_decoder=True, add_cross_attention=True),
    ):
        with pytest.raises(InputError, match="cannot be substituted: its config has"):
            substitute_layers_(model, [[1]], width=8)


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(InputError, match="is of no known family"):
        substitute_layers_(nn.Linear(2, 2), [[0]], width=1)
