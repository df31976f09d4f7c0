import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lightning_compress.compression_state import compression_state, restore_compression_
from lightning_compress.models import manifest_of, remove_heads_, remove_neurons_
from lightning_compress.quantization import SCHEMES, QuantizationConfig, coverage_of, quantize_
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import substitute_layers_

IDS = torch.arange(2, 26).reshape(3, 8)


def quantized(model, scheme):
    config = QuantizationConfig(scheme, smooth_alpha=0.5 if scheme == "int8-static" else None)
    quantize_(model, config, calibration_batches=[{"input_ids": IDS}])
    return model


def smaller(tiny_model, family):
    model = tiny_model(family, num_hidden_layers=3)
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {2: range(32)})
    substitute_layers_(model, [[1]], width=32)
    return model


def language_model():
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=100, n_embd=32, n_layer=2, n_head=4,
                                  bos_token_id=1, eos_token_id=1)  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.slow
def test_a_new_process_reloads_equal_outputs_with_and_without_this_package(
    tiny_model, assert_same_elsewhere
):
    models = {scheme: quantized(tiny_model("bert"), scheme) for scheme in SCHEMES}
    for family in ("distilbert", "roberta", "electra", "albert", "gpt2", "llama"):
        models[family] = quantized(tiny_model(family), "int8-static")
    models["pruned"] = quantized(smaller(tiny_model, "bert"), "int8-dynamic")
    models["pruned-gpt2"] = quantized(smaller(tiny_model, "gpt2"), "int8-dynamic")
    models["gpt2-lm"] = quantized(language_model(), "int8-dynamic")
    models["gpt2-four-lm"] = quantized(language_model(), "int4-weight")
    assert_same_elsewhere(models)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_folder_reloads_equal_outputs(tiny_model, family, scheme, tmp_path):
    model = quantized(tiny_model(family), scheme)
    before = dict(vars(model.config))
    loaded = load_compressed(save_compressed(model, tmp_path / "m"))
    assert vars(model.config).keys() == before.keys()
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert manifest_of(loaded) == manifest_of(model)
    assert coverage_of(loaded) == coverage_of(model)
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in model.parameters()]
    again = load_compressed(save_compressed(loaded, tmp_path / "again"))
    with torch.inference_mode():
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", ["dense", "pruned"])
def test_a_compression_state_restores_the_modules(tiny_model, scheme, shape):
    def fresh():
        return tiny_model("bert", num_hidden_layers=3)

    model = fresh() if shape == "dense" else smaller(tiny_model, "bert")
    if shape == "pruned" and scheme == "int4-weight":
        pytest.skip("groups of 32 do not divide what is left")
    quantized(model, scheme)
    state = compression_state(model)
    other = fresh()
    restore_compression_(other, state)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        if SCHEMES[scheme].dtype is None:
            assert torch.equal(other(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert manifest_of(other) == manifest_of(model)
    restore_compression_(other, state)  # what is there already stays
    assert [p.dtype for p in other.parameters()] == [p.dtype for p in model.parameters()]


def test_an_int8_bert_mini_takes_28_percent_of_the_bytes(tmp_path):
    config = AutoConfig.for_model("bert", hidden_size=256, num_hidden_layers=4,
                                  num_attention_heads=4, intermediate_size=1024)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    sizes = {}
    for scheme in ("fp32", "int8-dynamic", "int4-weight"):
        if scheme != "fp32":
            model = load_compressed(tmp_path / "fp32")
            quantize_(model, scheme)
        folder = save_compressed(model, tmp_path / scheme)
        sizes[scheme] = sum(file.stat().st_size for file in folder.iterdir())
    assert 0.25 < sizes["int8-dynamic"] / sizes["fp32"] <= 0.28
    assert sizes["int4-weight"] < sizes["int8-dynamic"]
