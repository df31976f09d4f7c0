import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_compress.models import structure_of
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization import QuantizationConfig, quantize_
from lightning_compress.quantization.selection import SKIPPED_BY_NAME

from ..families import ALL
from .conftest import INTEGER_SCHEMES


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_every_module_is_quantized_or_skipped_for_a_reason(
    tiny_model, calibration_of, family, scheme
):
    model = tiny_model(family)
    linear = {
        f"{block}{name.removeprefix(block)}"
        for block in structure_of(model).blocks
        for name, module in model.named_modules()
        if name.startswith(f"{block}.") and output_dim(module) is not None and _is_linear(module)
    }
    with_weights = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    config = QuantizationConfig(scheme, group_size=8)
    coverage = quantize_(model, config, calibration_batches=calibration_of(model).batches)
    assert linear <= set(coverage.quantized)
    assert set(coverage.quantized) | set(coverage.skipped) == with_weights
    assert not set(coverage.quantized) & set(coverage.skipped)
    kinds = {QuantizedLinear, QuantizedEmbedding}
    assert all(type(model.get_submodule(name)) in kinds for name in coverage.quantized)
    for name, reason in coverage.skipped.items():
        norm = "Norm" in type(model.get_submodule(name)).__name__
        assert ("no weight matrix" in reason) == norm
        relative = family == "deberta-v2" and "Encoder reads its weight" in reason
        assert norm or "classifier" in reason or relative
    assert any(isinstance(module, QuantizedEmbedding) for module in model.modules())
    whole = sum(p.numel() for p in tiny_model(family).parameters())
    assert coverage.quantized_fraction == pytest.approx(sum(coverage.quantized.values()) / whole)


def _is_linear(module):
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def test_a_weight_shared_with_a_skipped_module_is_skipped():
    config = AutoConfig.for_model("gpt2", vocab_size=100, n_embd=32, n_layer=1, n_head=4,
                                  bos_token_id=1, eos_token_id=1)  # fmt: skip
    for kept, other in (("transformer.wte", "lm_head"), ("lm_head", "transformer.wte")):
        model = AutoModelForCausalLM.from_config(config).eval()
        coverage = quantize_(model, QuantizationConfig("int8-dynamic", skip_modules=[kept]))
        assert coverage.skipped[kept] == SKIPPED_BY_NAME
        assert coverage.skipped[other] == f"shares its weight with {kept}"
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_skipped_modules_stay_in_floating_point(tiny_bert):
    skip_modules = ["bert.encoder.layer.0", "bert.pooler"]
    coverage = quantize_(tiny_bert, QuantizationConfig(skip_modules=skip_modules))
    kept = [name for name, reason in coverage.skipped.items() if reason == SKIPPED_BY_NAME]
    assert len(kept) == 7
    assert all(type(tiny_bert.get_submodule(name)) is nn.Linear for name in kept)
    assert "bert.encoder.layer.1.output.dense" in coverage.quantized
