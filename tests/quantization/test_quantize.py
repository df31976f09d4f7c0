import copy
import itertools
from typing import Any

import numpy as np
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
)
from lightning_compress.models.forward import model_inputs
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization import SCHEMES, QuantizationConfig, coverage_of, quantize_
from lightning_compress.substitution.edit import substitute_layers_

from ..families import ALL
from .conftest import INTEGER_SCHEMES, calibration_batches

# Largest error of the logits of tiny random models, relative to their standard deviation. Int4
# weights have no such bound; they are compared with a reference, as all weight-only schemes are.
MAX_ERROR = {
    "bf16": 0.05, "fp16": 0.01, "int8-weight": 0.1, "int8-dynamic": 0.1, "int8-static": 0.15,
}  # fmt: skip


def dequantized_by_loops(weight, bits, group_size):
    """Number by number: the nearest multiple of a scale that a group of neighbours in a row shares.

    In float32 as the product, so that no number falls on the other side of a midpoint.
    """
    values, qmax = weight.detach().numpy(), np.float32(2 ** (bits - 1) - 1)
    found = np.empty_like(values)
    for row, start in itertools.product(range(len(values)), range(0, values.shape[1], group_size)):
        group = range(start, start + group_size)
        scale = max(max(abs(values[row, column]) for column in group) / qmax, np.float32(1e-12))
        for column in group:
            found[row, column] = np.rint(values[row, column] / scale) * scale
    return torch.from_numpy(found)


def fake_dequantized(model, quantized, bits, group_size):
    """A copy of a dense model whose weights are those that a weight-only scheme computes with."""
    made = copy.deepcopy(model)
    modules = [made.get_submodule(name) for name in quantized]
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    tied = {module.weight for module in embeddings}
    with torch.no_grad():
        for module in embeddings:
            weight = module.weight
            weight.copy_(dequantized_by_loops(weight, 8, weight.shape[1]))
        for module in modules:
            if module.weight in tied:
                continue
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
            size = group_size if bits == 4 else weight.shape[1]
            weight.copy_(dequantized_by_loops(weight, bits, size))
    return made


def assert_close_logits(model, dense, scheme, logits, *, group_size=32):
    """Check logits of a quantized model against the dense model's or, weight-only, a reference's.

    Args:
        model: the quantized model.
        dense: the model before.
        scheme: of the quantized model.
        logits: computes the logits of a model.
        group_size: of int4 weights.
    """
    found, before = logits(model), logits(dense)
    assert not torch.equal(found, before)
    if scheme in MAX_ERROR:
        error = (found - before).square().mean().sqrt() / before.std()
        assert 0 < error < MAX_ERROR[scheme]
    if scheme in ("int8-weight", "int4-weight"):
        bits = 4 if scheme == "int4-weight" else 8
        reference = fake_dequantized(dense, coverage_of(model).quantized, bits, group_size)
        wanted = logits(reference)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(before.std()))


@pytest.fixture
def with_large_weights(tiny_model):
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
def logits_of(model):
    """Logits of the calibration batches: [texts, labels], of a language model [tokens, words]."""
    logits = [model(**model_inputs(model, batch)).logits for batch in calibration_batches()]
    return torch.cat([one.float().reshape(-1, one.shape[-1]) for one in logits])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_logits_stay_close_in_every_family(with_large_weights, calibration_of, family, scheme):
    model = with_large_weights(family)
    dense, calibration = copy.deepcopy(model), calibration_of(model)
    parameters = count_parameters(model)[0]
    macs = count_macs(model, calibration.batches[0])
    bytes_before = sum(p.nbytes for p in model.parameters())
    config = QuantizationConfig(scheme, group_size=8)
    coverage = quantize_(model, config, calibration_batches=calibration.batches)
    assert_close_logits(model, dense, scheme, logits_of, group_size=8)
    assert count_parameters(model)[0] == parameters
    assert count_macs(model, calibration.batches[0]) == macs
    assert coverage == coverage_of(model)
    assert 0.9 < coverage.quantized_fraction <= 1
    assert sum(p.nbytes for p in model.parameters()) < 0.55 * bytes_before
    (edit,) = manifest_of(model)
    assert (edit["edit"], edit["scheme"]) == ("quantize", scheme)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_are_within_half_a_scale(tiny_model, calibration_of, family, full_range, scheme):
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    config = QuantizationConfig(scheme, full_range=full_range)
    coverage = quantize_(model, config, calibration_batches=calibration_of(model).batches)
    multiplied = {m.weight for m in model.modules() if isinstance(m, QuantizedLinear)}
    portable = scheme in ("int8-dynamic", "int8-static") and not full_range
    for name in coverage.quantized:
        made, old = model.get_submodule(name), dense.get_submodule(name)
        weight = old.weight.T if type(old).__name__ == "Conv1D" else old.weight
        error = (made.dequantized() - weight).abs()
        groups = made.scale.shape[1]
        worst = error.view(len(error), groups, -1).amax(-1) / made.scale
        assert worst.max() <= 0.5 + 1e-4
        wanted = 4 if scheme == "int4-weight" and isinstance(made, QuantizedLinear) else 8
        if portable and made.weight in multiplied:
            wanted = 7
            assert made.weight.abs().max() == 63
        assert made.bits == wanted
        # All numbers there are for a row are made use of.
        limit = {4: 7, 7: 63, 8: 127}[wanted]
        assert (weight.abs().amax(1) >= made.scale.amax(1) * limit * 0.99 - 1e-9).all()


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_pruned_weights_stay_zero(tiny_bert, calibration_of, scheme):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    mask = torch.rand(tiny_bert.get_parameter(name).shape) < 0.4
    set_masks_(tiny_bert, {name: mask})
    quantize_(tiny_bert, scheme, calibration_batches=calibration_of(tiny_bert).batches)
    weight = tiny_bert.get_submodule(name.removesuffix(".weight")).dequantized()
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).float().mean() > 0.8


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_pruned_and_substituted_models_are_quantized(with_large_weights, calibration_of, scheme):
    model = with_large_weights("bert", num_hidden_layers=4)
    remove_layers_(model, [3])
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {0: range(32)})  # to numbers that groups of 32 divide
    substitute_layers_(model, [[1]], width=32, heads=2)
    remove_heads_(model, {0: [0, 1]}) if scheme != "int4-weight" else None
    dense, calibration = copy.deepcopy(model), calibration_of(model)
    if scheme == "int4-weight":
        with pytest.raises(InputError, match="group_size: 32 does not divide the 24 inputs"):
            quantize_(model, scheme)
        quantize_(model, QuantizationConfig("int4-weight", group_size=8))
    else:
        quantize_(model, scheme, calibration_batches=calibration.batches)
    assert_close_logits(model, dense, scheme, logits_of, group_size=8)
    assert isinstance(model.get_submodule("bert.encoder.layer.1.down"), QuantizedLinear)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForMaskedLM])
def test_a_shared_weight_stays_shared(calibration_of, auto, scheme):
    family = "gpt2" if auto is AutoModelForCausalLM else "bert"
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1} if (
        family == "gpt2"
    ) else {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 64}  # fmt: skip
    config = AutoConfig.for_model(family, vocab_size=100, pad_token_id=0, **sizes)
    model = auto.from_config(config).eval()
    before = count_parameters(model)[0]
    dense, calibration = copy.deepcopy(model), calibration_of(model)
    quantize_(model, scheme, calibration_batches=calibration.batches)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.dtype == torch.int8
    assert count_parameters(model)[0] == before
    assert_close_logits(model, dense, scheme, logits_of)


def test_smoothing_reduces_the_error_of_outliers(with_large_weights, calibration_of):
    """With inputs that stand out, the error of fixed steps is much smaller."""
    errors = {}
    for alpha in (None, 0.5):
        model = with_large_weights("gpt2")
        for block in model.transformer.h:
            for norm, after in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                # The same function, with one input a hundred times as large.
                norm.weight.data[3] *= 100
                norm.bias.data[3] *= 100
                after.weight.data[3] /= 100
        calibration = calibration_of(model)
        before = logits_of(model)
        config = QuantizationConfig("int8-static", smooth_alpha=alpha)
        quantize_(model, config, calibration_batches=calibration.batches)
        errors[alpha] = float((logits_of(model) - before).square().mean().sqrt())
    assert errors[0.5] < 0.2 * errors[None]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_refused_model_is_unchanged(tiny_bert, calibration_of, scheme):
    before = copy.deepcopy(tiny_bert.state_dict())
    batches = calibration_of(tiny_bert).batches
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


def test_a_model_with_nan_is_refused(tiny_bert, calibration_of):
    with torch.no_grad():
        tiny_bert.bert.encoder.layer[1].output.dense.bias[3] = torch.nan
    with pytest.raises(InputError, match=r"inputs of bert.pooler.dense are not finite"):
        quantize_(tiny_bert, "int8-static", calibration_batches=calibration_of(tiny_bert).batches)
    assert manifest_of(tiny_bert) == []


def test_a_quantized_model_cannot_be_pruned(tiny_bert):
    quantize_(tiny_bert, "int8-dynamic")
    for edit in (
        lambda: remove_heads_(tiny_bert, {0: [1]}),
        lambda: remove_neurons_(tiny_bert, {0: [1]}),
        lambda: remove_layers_(tiny_bert, [0]),
        lambda: substitute_layers_(tiny_bert, [[0]], width=16),
    ):
        with pytest.raises(InputError, match=r"is quantized, to int8-dynamic: .* and quantize the"):
            edit()
