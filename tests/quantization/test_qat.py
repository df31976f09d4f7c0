"""Layers that round while they learn, and what they are converted to."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, set_masks_
from lightning_compress.models.masks import apply_masks_
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization import QuantizationConfig, coverage_of, quantize_
from lightning_compress.quantization.fake_quantized import (
    FakeQuantLinear,
    convert_,
    fake_quantized_specs,
)
from lightning_compress.quantization.qat import prepare_

from ..families import ALL
from .conftest import INTEGER_SCHEMES, logits_of, train_


def grouped(scheme, **options):
    return QuantizationConfig(scheme, group_size=8, **options)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_a_trained_model_converts_bit_exactly(tiny_model, calibration_of, family, scheme):
    model = tiny_model(family)
    calibration = calibration_of(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    prepare_(model, grouped(scheme), calibration_batches=calibration.batches)
    assert before.keys() <= {name for name, _ in model.named_parameters()}
    losses = train_(model, calibration)
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert not any(torch.equal(after[name], old) for name, old in before.items() if old.dim() == 2)
    prepared = logits_of(model, calibration)
    convert_(model)
    assert all(
        torch.equal(*both) for both in zip(prepared, logits_of(model, calibration), strict=True)
    )
    assert coverage_of(model).quantized_fraction > 0.9
    (edit,) = manifest_of(model)
    assert (edit["edit"], edit["scheme"]) == ("quantize", scheme)


def test_symmetric_zero_points_stay_zero_in_training(tiny_bert, calibration_of):
    calibration = calibration_of(tiny_bert)
    config = QuantizationConfig("int8-static", symmetric=True)
    prepare_(tiny_bert, config, calibration_batches=calibration.batches)
    train_(tiny_bert, calibration)
    prepared = logits_of(tiny_bert, calibration)
    convert_(tiny_bert)
    layers = [one for one in tiny_bert.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == 13
    assert not any(
        layer.input_zero_point.any() or layer.zero_point_correction.any() for layer in layers
    )
    again = logits_of(tiny_bert, calibration)
    assert all(torch.equal(*both) for both in zip(prepared, again, strict=True))


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_untrained_conversion_equals_post_training_quantization(
    tiny_model, calibration_of, family, scheme
):
    trained, direct = tiny_model(family), tiny_model(family)
    batches = calibration_of(trained).batches
    prepare_(trained, grouped(scheme), calibration_batches=batches)
    convert_(trained)
    quantize_(direct, grouped(scheme), calibration_batches=batches)
    one, other = trained.state_dict(), direct.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert manifest_of(trained) == manifest_of(direct)


def test_a_shared_weight_is_trained_and_converted_as_one(calibration_of):
    config = AutoConfig.for_model("gpt2", vocab_size=100, n_embd=32, n_layer=1, n_head=4,
                                  bos_token_id=1, eos_token_id=1)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    calibration = calibration_of(model)
    prepare_(model, grouped("int8-static"), calibration_batches=calibration.batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in calibration.batches:
        logits = calibration.logits(batch)
        functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        ).backward()
        optimizer.step()
    model.eval()
    prepared = logits_of(model, calibration)
    convert_(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(
        torch.equal(*both) for both in zip(prepared, logits_of(model, calibration), strict=True)
    )


def test_pruned_weights_stay_zero_through_training(tiny_bert, calibration_of):
    name = "bert.encoder.layer.0.output.dense.weight"
    mask = torch.rand(tiny_bert.get_parameter(name).shape) < 0.3
    set_masks_(tiny_bert, {name: mask})
    prepare_(tiny_bert, "int8-dynamic")
    train_(tiny_bert, calibration_of(tiny_bert), steps=1)
    apply_masks_(tiny_bert)
    convert_(tiny_bert)
    weight = tiny_bert.get_submodule(name.removesuffix(".weight")).dequantized()
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).float().mean() > 0.8


def test_training_works_under_autocast(tiny_bert, calibration_of):
    calibration = calibration_of(tiny_bert)
    prepare_(tiny_bert, "int8-dynamic")
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(tiny_bert, calibration)
        losses = train_(tiny_bert, calibration)
    whole = logits_of(tiny_bert, calibration)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in tiny_bert.parameters())
    assert [one.shape for one in found] == [one.shape for one in whole]


def test_a_refused_model_is_unchanged(tiny_bert, calibration_of):
    with pytest.raises(InputError, match="bf16 needs no quantization-aware training: train with"):
        prepare_(tiny_bert, "bf16")
    with pytest.raises(InputError, match=r"weights of torch\.bfloat16.*load it in float32"):
        prepare_(copy.deepcopy(tiny_bert).to(torch.bfloat16), "int8-dynamic")
    with pytest.raises(InputError, match=r"scheme must be one of .*, not 'int3'"):
        prepare_(tiny_bert, "int3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="int8-static needs calibration examples"):
        prepare_(tiny_bert, "int8-static")
    with pytest.raises(InputError, match="has no fake-quantized layers: call prepare_"):
        convert_(tiny_bert)
    assert not fake_quantized_specs(tiny_bert)
    assert manifest_of(tiny_bert) == []
    prepare_(tiny_bert, "int8-dynamic")
    assert isinstance(tiny_bert.bert.pooler.dense, FakeQuantLinear)
    for again in (lambda: prepare_(tiny_bert, "int8-dynamic"),
                  lambda: quantize_(tiny_bert, "int8-dynamic")):  # fmt: skip
        with pytest.raises(InputError, match="is being trained to be quantized, to int8-"):
            again()
