from typing import get_args

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization.precisions import (
    PRECISIONS,
    PrecisionName,
    QuantizationConfig,
    own_precision,
)
from lightning_compress.quantization.quantize import in_precision

BATCHES = [{"input_ids": torch.randint(2, 100, (2, 8))}]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_precision_copies_the_model(tiny_bert, precision):
    before = {name: value.clone() for name, value in tiny_bert.state_dict().items()}
    made = in_precision(tiny_bert, precision, "cpu", BATCHES)
    assert own_precision(made) == (None if precision == "fp32" else precision)
    assert manifest_of(tiny_bert) == []
    assert all(torch.equal(before[name], value) for name, value in tiny_bert.state_dict().items())
    kinds = {parameter.dtype for parameter in made.parameters()}
    assert kinds == {
        "fp32": {torch.float32},
        "bf16": {torch.bfloat16},
        "fp16": {torch.float16},
        "int4-weight": {torch.float32, torch.int8, torch.uint8},
    }.get(precision, {torch.float32, torch.int8})
    # A quantized model is copied as it is, and is in no other precision.
    again = in_precision(made, precision, "cpu", ())
    assert again is not made
    assert manifest_of(again) == manifest_of(made)
    if precision not in ("fp32", "int8-dynamic"):
        with pytest.raises(InputError, match=f"is quantized, to {precision}"):
            in_precision(made, "int8-dynamic", "cpu", ())


def test_the_type_of_options_names_the_entries_of_the_table():
    assert get_args(PrecisionName) == tuple(PRECISIONS)


def test_a_16_bit_model_is_cast_to_fp32_first(tiny_bert):
    tiny_bert.to(torch.bfloat16)  # as loaded from somewhere
    made = in_precision(tiny_bert, "int8-dynamic", "cpu", ())
    assert {p.dtype for p in made.parameters()} == {torch.float32, torch.int8}
    assert sum(isinstance(module, QuantizedLinear) for module in made.modules()) == 13


def test_static_precisions_need_calibration_examples(tiny_bert):
    with pytest.raises(
        InputError,
        match="int8-static needs calibration examples: pass",
    ):
        in_precision(tiny_bert, "int8-static", "cpu", ())


@pytest.mark.parametrize("scheme", ["bf16", "fp16"])
@pytest.mark.parametrize("option", [{"skip_modules": ["bert.pooler"]}, {"smooth_alpha": 0.5}])
def test_options_without_a_meaning_in_16_bits_are_refused(scheme, option):
    with pytest.raises(InputError, match=f"{next(iter(option))}: {scheme} casts the whole model"):
        QuantizationConfig(scheme, **option)
    QuantizationConfig("int8-dynamic", **option)
