"""Every text family of transformers: quantized right, or left in floating point with a word."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_compress.errors import InputError
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.quantization import QuantizationConfig, quantize_
from lightning_compress.quantization.cast import cast_
from lightning_compress.quantization.fake_quantized import convert_
from lightning_compress.quantization.qat import prepare_
from lightning_compress.saving import load_compressed, save_compressed

from .text_families import CLASSES, text_batch, text_logits, tiny_text_model

# Scaled and positional embeddings, weights read by name, own linear layers, tied weights.
SAMPLE = ["bart", "gemma", "deberta-v2", "opt", "roformer", "t5", "falcon", "mamba", "rwkv",
          "m2m_100", "mobilebert", "nanochat"]  # fmt: skip
# transformers itself cannot run them in bf16 or fp16.
NOT_RUNNING = {
    ("deepseek_v4", "fp16"),
    *product(("deberta", "fnet", "mra", "reformer"), ("bf16", "fp16")),
}
# transformers cannot tie its weights.
NOT_LOADED = {"canine"}


def families(sample):
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in CLASSES if name not in sample]
    return [*sample, *slow]


def built(family):
    """A model, a batch and its logits; skips what transformers itself cannot do at this size."""
    try:
        model = tiny_text_model(family)
        batch = text_batch(model)
        with torch.no_grad():
            logits = text_logits(model, batch)
    except Exception as error:
        if family in SAMPLE:
            raise
        pytest.skip(f"no tiny model: {error}")
    return model, batch, logits


def rounded_to_nearest(weight, bits, group_size):
    """A weight of which each group of a row is the nearest multiple of its largest / qmax."""
    qmax = 2 ** (bits - 1) - 1
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    scale = (groups.abs().amax(-1, keepdim=True) / qmax).clamp(min=1e-12)
    return ((groups / scale).round() * scale).view_as(weight)


def dequantized_copy(dense, quantized):
    """The dense model, whose code is transformers', with the weights of the quantized one."""
    made, done = copy.deepcopy(dense), set()
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, QuantizedLinear | QuantizedEmbedding):
                weight = made.get_submodule(name).weight
                if weight in done:
                    continue
                done.add(weight)
                rows = weight.T if type(made.get_submodule(name)).__name__ == "Conv1D" else weight
                rows.copy_(rounded_to_nearest(rows, module.bits, getattr(module, "group_size", 0)))
    return made


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-weight"])
@pytest.mark.parametrize("family", families(SAMPLE))
@torch.no_grad()
def test_a_quantized_model_equals_one_with_dequantized_weights(tmp_path, family, scheme):
    model, batch, before = built(family)
    dense = copy.deepcopy(model)
    coverage = quantize_(model, QuantizationConfig(scheme, group_size=4))
    found = text_logits(model, batch)
    wanted = text_logits(dequantized_copy(dense, model), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(before.std()))
    assert coverage.quantized
    with_weights = {name.rpartition(".")[0] for name, _ in dense.named_parameters()}
    assert with_weights <= {*coverage.quantized, *coverage.skipped}
    if family not in NOT_LOADED:
        save_compressed(model, tmp_path / "model")
        loaded = load_compressed(tmp_path / "model")
        kept = loaded.state_dict()
        assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
        # On some CPUs products of floats depend on where the tensors lie in memory.
        torch.testing.assert_close(text_logits(loaded, batch), found, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(CLASSES))
@torch.no_grad()
def test_quantized_inputs_change_little(family):
    model, batch, before = built(family)
    for scheme in ("int8-dynamic", "int8-static"):
        made = copy.deepcopy(model)
        try:
            quantize_(made, scheme, calibration_batches=[batch])
        except InputError as refusal:
            assert "was not used by any calibration example" in str(refusal)  # noqa: PT017
            continue
        error = (text_logits(made, batch) - before).square().mean().sqrt()
        assert error < 0.3 * float(before.std()) or "moe" in family


@pytest.mark.parametrize("scheme", ["bf16", "fp16"])
@pytest.mark.parametrize("family", families(["llama", "gemma", "m2m_100", "t5", "bert", "fnet"]))
@torch.no_grad()
def test_a_cast_model_is_the_same_after_loading(tmp_path, family, scheme):
    model, batch, before = built(family)
    if (family, scheme) in NOT_RUNNING:
        original = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match=r"does not run in .*float16.*choose another scheme"):
            quantize_(model, scheme)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, original[name]), name
        return
    quantize_(model, scheme)
    # Before the model runs: CTRL casts a buffer then.
    tensors = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    found = text_logits(model, batch)
    assert (found - before).square().mean().sqrt() < 0.3 * float(before.std())
    save_compressed(model, tmp_path / "model")
    loaded = load_compressed(tmp_path / "model")
    for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert tensor.dtype == tensors[name].dtype, name
        assert torch.equal(tensor, tensors[name]), name
    assert torch.equal(text_logits(loaded, batch), found)


@pytest.mark.parametrize("scheme", ["int8-dynamic"])
@pytest.mark.parametrize("family", families(["bart", "gemma", "falcon"]))
def test_a_prepared_model_trains_and_converts_bit_exactly(family, scheme):
    if family in ("reformer", "rwkv"):
        pytest.skip("transformers has no gradients of it in eval mode")
    model, batch, _ = built(family)
    quantized = copy.deepcopy(model)
    quantize_(quantized, scheme)
    prepare_(model, scheme)
    with torch.no_grad():
        assert torch.equal(text_logits(model, batch), text_logits(quantized, batch))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    text_logits(model, batch).square().mean().backward()
    optimizer.step()
    changed = zip(model.parameters(), before, strict=True)
    assert sum(not torch.equal(now, then) for now, then in changed) > len(before) / 2
    with torch.no_grad():
        trained = text_logits(model, batch)
        convert_(model)
        assert torch.equal(text_logits(model, batch), trained)


def test_weights_that_the_model_reads_stay_in_floating_point():
    reasons = {
        "deberta-v2": {"rel_embeddings": "DebertaV2Encoder reads its weight"},
        "t5": {"wo": "T5DenseActDense reads its weight"},
        "bart": {"embed_positions": "BartLearnedPositionalEmbedding: its forward pass is unknown"},
        "mamba": {"lm_head": "MambaForCausalLM reads its weight",
                  "embeddings": "shares its weight with lm_head"},
        "rwkv": {"output": "RwkvModel reads its weight"},
    }  # fmt: skip
    for family, wanted in reasons.items():
        coverage = quantize_(tiny_text_model(family), "int8-weight")
        for last, reason in wanted.items():
            found = {v for name, v in coverage.skipped.items() if name.rpartition(".")[2] == last}
            assert found == {reason}


def test_the_factor_of_an_embedding_becomes_part_of_its_scale():
    model = tiny_text_model("gemma")
    embedding: Any = model.get_input_embeddings()
    assert float(embedding.embed_scale) == pytest.approx(32**0.5)
    ids = torch.arange(10)
    wanted = rounded_to_nearest(embedding.weight[:10].detach(), 8, 0) * 32**0.5
    quantize_(model, "int8-weight")
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    torch.testing.assert_close(model.get_input_embeddings()(ids), wanted)


def test_a_subclass_that_computes_something_else_is_named(tiny_bert):
    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    class Doubled(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    tiny_bert.bert.embeddings.token_type_embeddings = Shifted(2, 32)
    tiny_bert.bert.pooler.dense = Doubled(32, 32)
    tiny_bert.bert.embeddings.position_embeddings.max_norm = 1.0
    skipped = quantize_(tiny_bert, "int8-weight").skipped
    for name, kind in (
        ("bert.embeddings.token_type_embeddings", "Shifted"),
        ("bert.pooler.dense", "Doubled"),
        ("bert.embeddings.position_embeddings", "Embedding"),
    ):
        assert skipped[name] == f"{kind}: its forward pass is unknown"


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-weight"])
@torch.no_grad()
def test_a_computed_weight_stays_as_it_is(tiny_bert, scheme):
    layer = tiny_bert.bert.encoder.layer[0]
    nn.utils.parametrizations.weight_norm(layer.intermediate.dense)
    prune.l1_unstructured(layer.output.dense, "weight", 0.5)
    dense, batch = copy.deepcopy(tiny_bert), text_batch(tiny_bert)
    coverage = quantize_(tiny_bert, QuantizationConfig(scheme, group_size=8))
    for name in ("intermediate", "output"):
        assert "computed" in coverage.skipped[f"bert.encoder.layer.0.{name}.dense"]
    made = dequantized_copy(dense, tiny_bert)
    torch.testing.assert_close(text_logits(tiny_bert, batch), text_logits(made, batch))


class LoraLinear(nn.Module):
    """What PEFT puts in place of a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, inputs):
        down = self.lora_A["default"]
        return self.base_layer(inputs) + self.lora_B["default"](down(inputs.to(down.weight.dtype)))


@torch.no_grad()
def test_adapters_of_peft_stay_in_floating_point(tiny_bert):
    attention = tiny_bert.bert.encoder.layer[0].attention.self
    attention.query = LoraLinear(attention.query)
    dense, batch = copy.deepcopy(tiny_bert), text_batch(tiny_bert)
    skipped = quantize_(tiny_bert, "int8-weight").skipped
    for last in ("base_layer", "lora_A.default", "lora_B.default"):
        reason = skipped[f"bert.encoder.layer.0.attention.self.query.{last}"]
        assert "merge_and_unload()" in reason
    made = dequantized_copy(dense, tiny_bert)
    torch.testing.assert_close(text_logits(tiny_bert, batch), text_logits(made, batch))


@pytest.mark.parametrize("family", ["bert", "llama", "gemma", "t5"])
@torch.no_grad()
def test_a_model_in_16_bits_is_quantized_and_is_float32_elsewhere(tmp_path, family):
    model, batch, _ = built(family)
    cast_(model, torch.bfloat16)
    dense = copy.deepcopy(model).float()
    quantize_(model, "int8-weight")
    found = text_logits(model, batch)
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.int8}
    wanted = text_logits(dequantized_copy(dense, model), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    save_compressed(model, tmp_path / "model")
    assert torch.equal(text_logits(load_compressed(tmp_path / "model"), batch), found)
