import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from lightning_compress.errors import InputError
from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.models import (
    manifest_of,
    remove_heads_,
    remove_neurons_,
    set_masks_,
    structure_of,
)
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization import SCHEMES, QuantizationConfig, coverage_of, quantize_
from lightning_compress.quantization.coverage import SKIPPED_BY_NAME
from lightning_compress.substitution.edit import substitute_layers_

from ..families import ALL
from .conftest import INTEGER_SCHEMES

# How far the logits of tiny random models may move, in parts of their standard deviation.
FAR = {
    "bf16": 0.05, "fp16": 0.01, "int8-weight": 0.1, "int4-weight": 1.0,
    "int8-dynamic": 0.1, "int8-static": 0.15,
}  # fmt: skip


@pytest.fixture
def spread_out(tiny_model):
    """A tiny model whose logits differ between texts: random heads say little."""

    def build(family, **changes):
        model = tiny_model(family, **changes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "embedding" not in name:
                    parameter.mul_(5)
        return model

    return build


@torch.inference_mode()
def said(model, calibration):
    return torch.cat([calibration.logits(batch).float() for batch in calibration.batches])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_every_family_says_nearly_the_same(spread_out, looking, family, scheme):
    model = spread_out(family)
    calibration = looking(model)
    before = said(model, calibration)
    parameters = count_parameters(model)[0]
    macs = count_macs(model, calibration.batches[0])
    bytes_before = sum(p.nbytes for p in model.parameters())
    config = QuantizationConfig(scheme, group_size=8)
    coverage = quantize_(model, config, calibration_batches=calibration.batches)
    error = (said(model, calibration) - before).square().mean().sqrt() / before.std()
    assert 0 < error < FAR[scheme]
    assert count_parameters(model)[0] == parameters
    assert count_macs(model, calibration.batches[0]) == macs
    assert coverage == coverage_of(model)
    assert 0.9 < coverage.quantized_fraction <= 1
    assert sum(p.nbytes for p in model.parameters()) < 0.55 * bytes_before
    (edit,) = manifest_of(model)
    assert (edit["edit"], edit["scheme"]) == ("quantize", scheme)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_nothing_is_left_out_in_silence(tiny_model, looking, family, scheme):
    model = tiny_model(family)
    linear = {
        f"{block}{name.removeprefix(block)}"
        for block in structure_of(model).blocks
        for name, module in model.named_modules()
        if name.startswith(f"{block}.") and output_dim(module) is not None and _is_linear(module)
    }
    with_weights = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    config = QuantizationConfig(scheme, group_size=8)
    coverage = quantize_(model, config, calibration_batches=looking(model).batches)
    assert linear <= set(coverage.quantized)
    assert set(coverage.quantized) | set(coverage.skipped) == with_weights
    assert not set(coverage.quantized) & set(coverage.skipped)
    kinds = {QuantizedLinear, QuantizedEmbedding}
    assert all(type(model.get_submodule(name)) in kinds for name in coverage.quantized)
    for name, reason in coverage.skipped.items():
        norm = "Norm" in type(model.get_submodule(name)).__name__
        assert ("no weight matrix" in reason) == norm
        assert norm or "classifier" in reason
    assert any(isinstance(module, QuantizedEmbedding) for module in model.modules())
    whole = sum(p.numel() for p in tiny_model(family).parameters())
    assert coverage.quantized_fraction == pytest.approx(sum(coverage.quantized.values()) / whole)


def _is_linear(module):
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_are_off_by_half_a_step_at_most(tiny_model, looking, family, scheme):
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    coverage = quantize_(model, scheme, calibration_batches=looking(model).batches)
    for name in coverage.quantized:
        made, old = model.get_submodule(name), dense.get_submodule(name)
        weight = old.weight.T if type(old).__name__ == "Conv1D" else old.weight
        error = (made.dequantized() - weight).abs()
        groups = made.scale.shape[1]
        worst = error.view(len(error), groups, -1).amax(-1) / made.scale
        assert worst.max() <= 0.5 + 1e-4
        wanted = 4 if scheme == "int4-weight" and isinstance(made, QuantizedLinear) else 8
        assert getattr(made, "bits", 8) == wanted
        # All numbers there are for a row are made use of.
        limit = 7 if wanted == 4 else 127
        assert (weight.abs().amax(1) >= made.scale.amax(1) * limit * 0.99 - 1e-9).all()


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_pruned_weights_stay_zero(tiny_bert, looking, scheme):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    mask = torch.rand(tiny_bert.get_parameter(name).shape) < 0.4
    set_masks_(tiny_bert, {name: mask})
    quantize_(tiny_bert, scheme, calibration_batches=looking(tiny_bert).batches)
    weight = tiny_bert.get_submodule(name.removesuffix(".weight")).dequantized()
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).float().mean() > 0.8


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_what_was_pruned_before_is_quantized_too(spread_out, looking, scheme):
    model = spread_out("bert", num_hidden_layers=4)
    remove_layers_(model, [3])
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {0: range(32)})  # to numbers that groups of 32 divide
    substitute_layers_(model, [[1]], width=32, heads=2)
    remove_heads_(model, {0: [0, 1]}) if scheme != "int4-weight" else None
    calibration = looking(model)
    before = said(model, calibration)
    if scheme == "int4-weight":
        with pytest.raises(InputError, match="group_size: 32 does not divide the 24 inputs"):
            quantize_(model, scheme)
        quantize_(model, QuantizationConfig("int4-weight", group_size=8))
    else:
        quantize_(model, scheme, calibration_batches=calibration.batches)
    error = (said(model, calibration) - before).square().mean().sqrt() / before.std()
    assert 0 < error < FAR[scheme]
    assert isinstance(model.get_submodule("bert.encoder.layer.1.down"), QuantizedLinear)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForMaskedLM])
def test_a_shared_weight_stays_shared(looking, auto, scheme):
    family = "gpt2" if auto is AutoModelForCausalLM else "bert"
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1} if (
        family == "gpt2"
    ) else {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 64}  # fmt: skip
    config = AutoConfig.for_model(family, vocab_size=100, pad_token_id=0, **sizes)
    model = auto.from_config(config).eval()
    before = count_parameters(model)[0]
    calibration = looking(model)
    logits = said_by_tokens(model, calibration)
    quantize_(model, scheme, calibration_batches=calibration.batches)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.dtype == torch.int8
    assert count_parameters(model)[0] == before
    error = (said_by_tokens(model, calibration) - logits).square().mean().sqrt() / logits.std()
    assert 0 < error < FAR[scheme]


@torch.inference_mode()
def said_by_tokens(model, calibration):
    return torch.cat([calibration.logits(batch).flatten(0, 1) for batch in calibration.batches])


def test_a_weight_shared_with_one_that_is_kept_is_kept():
    config = AutoConfig.for_model("gpt2", vocab_size=100, n_embd=32, n_layer=1, n_head=4,
                                  bos_token_id=1, eos_token_id=1)  # fmt: skip
    for kept, other in (("transformer.wte", "lm_head"), ("lm_head", "transformer.wte")):
        model = AutoModelForCausalLM.from_config(config).eval()
        coverage = quantize_(model, QuantizationConfig("int8-dynamic", skip_modules=[kept]))
        assert coverage.skipped[kept] == SKIPPED_BY_NAME
        assert coverage.skipped[other] == f"shares its weight with {kept}"
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_is_kept_stays(tiny_bert):
    skip_modules = ["bert.encoder.layer.0", "bert.pooler"]
    coverage = quantize_(tiny_bert, QuantizationConfig(skip_modules=skip_modules))
    kept = [name for name, reason in coverage.skipped.items() if reason == SKIPPED_BY_NAME]
    assert len(kept) == 7
    assert all(type(tiny_bert.get_submodule(name)) is nn.Linear for name in kept)
    assert "bert.encoder.layer.1.output.dense" in coverage.quantized


def test_smoothing_moves_the_rounding_and_nothing_else(spread_out, looking):
    """With inputs that stand out, the error of fixed steps is much smaller."""
    errors = {}
    for alpha in (None, 0.5):
        model = spread_out("gpt2")
        for block in model.transformer.h:
            for norm, after in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                # The same function, with one input a hundred times as large.
                norm.weight.data[3] *= 100
                norm.bias.data[3] *= 100
                after.weight.data[3] /= 100
        calibration = looking(model)
        before = said(model, calibration)
        config = QuantizationConfig("int8-static", smooth_alpha=alpha)
        quantize_(model, config, calibration_batches=calibration.batches)
        errors[alpha] = float((said(model, calibration) - before).square().mean().sqrt())
    assert errors[0.5] < 0.2 * errors[None]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_refused_it_is_unchanged(tiny_bert, looking, scheme):
    before = copy.deepcopy(tiny_bert.state_dict())
    batches = looking(tiny_bert).batches
    refusals: dict[str, dict[str, Any]] = {
        "scheme must be one of bf16, fp16, int8-weight": {"scheme": "int3"},
        "scheme must be one of .*, not 'fp32'": {"scheme": "fp32"},
        "skip_modules: .* has no module 'bert.nowhere'": {"skip_modules": ["bert.nowhere"]},
        "group_size must be an even number .*, not 7": {"group_size": 7},
        "group_size must be an even number .*, not 0": {"group_size": 0},
        "group_size: 10 does not divide the 32": {"scheme": "int4-weight", "group_size": 10},
        r"smooth_alpha must be in \[0, 1\], not -0.1": {"smooth_alpha": -0.1},
        r"smooth_alpha must be in \[0, 1\], not 1.1": {"smooth_alpha": 1.1},
        "observer must be one of minmax, percentile, mse, not 'max'": {"observer": "max"},
    }
    for message, options in refusals.items():
        with pytest.raises(InputError, match=message):
            quantize_(tiny_bert, QuantizationConfig(**options), calibration_batches=batches)
    with pytest.raises(InputError, match="int8-static needs calibration examples"):
        quantize_(tiny_bert, "int8-static")
    with pytest.raises(InputError, match="smooth_alpha needs calibration examples"):
        quantize_(tiny_bert, QuantizationConfig(smooth_alpha=0.5))
    assert manifest_of(tiny_bert) == []
    after = tiny_bert.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    quantize_(tiny_bert, scheme, calibration_batches=batches)
    with pytest.raises(InputError, match=f"is quantized, to {scheme}: quantize the model that it"):
        quantize_(tiny_bert, "int8-dynamic")


def test_a_broken_model_is_refused(tiny_bert, looking):
    with torch.no_grad():
        tiny_bert.bert.encoder.layer[1].output.dense.bias[3] = torch.nan
    with pytest.raises(InputError, match=r"inputs of bert.pooler.dense are not finite"):
        quantize_(tiny_bert, "int8-static", calibration_batches=looking(tiny_bert).batches)
    assert manifest_of(tiny_bert) == []


def test_a_quantized_model_is_not_pruned(tiny_bert):
    quantize_(tiny_bert, "int8-dynamic")
    for edit in (
        lambda: remove_heads_(tiny_bert, {0: [1]}),
        lambda: remove_neurons_(tiny_bert, {0: [1]}),
        lambda: remove_layers_(tiny_bert, [0]),
        lambda: substitute_layers_(tiny_bert, [[0]], width=16),
    ):
        with pytest.raises(InputError, match=r"is quantized, to int8-dynamic: .* and quantize the"):
            edit()
