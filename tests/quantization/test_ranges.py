import itertools

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models.modeling_quantized import quantize_affine
from lightning_compress.quantization import QuantizationConfig, sensitivities
from lightning_compress.quantization.activation_stats import (
    ActivationStats,
    collect_activation_stats,
)
from lightning_compress.quantization.qparams import choose_qparams, smoothing_scale

NAMES = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense",
         "bert.pooler.dense"]  # fmt: skip


def test_padding_is_not_seen(tiny_bert, looking):
    calibration = looking(tiny_bert)
    alone = [
        {"input_ids": row[mask.bool()][None]}
        for batch in calibration.batches
        for row, mask in zip(
            batch["input_ids"],
            batch.get("attention_mask", torch.ones_like(batch["input_ids"])),
            strict=True,
        )
    ]
    whole = collect_activation_stats(tiny_bert, NAMES, calibration.batches)
    single = collect_activation_stats(tiny_bert, NAMES, alone)
    for name in NAMES:
        torch.testing.assert_close(whole[name].max, single[name].max)
        torch.testing.assert_close(whole[name].min, single[name].min)
    assert len(whole[NAMES[0]].samples) == 6 * 9 + 12 + 5 + 8
    assert len(whole[NAMES[2]].samples) == 9  # a text each


def test_a_layer_that_is_not_used_is_refused(tiny_bert, looking):
    tiny_bert.spare = torch.nn.Linear(4, 4)
    with pytest.raises(InputError, match="spare was not used by any calibration example"):
        collect_activation_stats(tiny_bert, [*NAMES, "spare"], looking(tiny_bert).batches)


def seen(values):
    return ActivationStats(values.amax(0), values.amin(0), values)


def squared_error(values, qparams):
    return float(errors(values, qparams).square().sum())


def errors(values, grid):
    step, zero = grid
    return (quantize_affine(values, step, zero) - zero) * step - values


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (3.0, 0.2), (-9.0, 2.0), (0.0, 1e-6)])
def test_with_the_extremes_nothing_is_cut_off(shift, scale):
    values = torch.randn(500, 8) * scale + shift
    step, zero = choose_qparams(seen(values), "minmax")
    assert errors(values, (step, zero)).abs().max() <= step * (1.0 + 1e-3)
    # Zero, for what is masked, is met exactly.
    assert errors(torch.zeros(1), (step, zero)).item() == 0
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    assert float(step) == pytest.approx((high - low) / 255)


def test_the_percentile_lets_go_of_one_in_ten_thousand():
    values = torch.cat([torch.linspace(-1, 1, 20001), torch.tensor([1000.0])])[:, None]
    assert float(choose_qparams(seen(values), "percentile")[0]) == pytest.approx(2 / 255, rel=1e-3)
    assert float(choose_qparams(seen(values), "minmax")[0]) == pytest.approx(1001 / 255, rel=1e-3)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_least_squared_error_is_the_least_of_a_brute_search(shift):
    values = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).exp() * 0.1 + shift
    found = errors(values, choose_qparams(seen(values), "mse")).square().sum()
    extremes = torch.stack([values.min(), values.max()])[:, None]
    best = min(
        squared_error(values, choose_qparams(seen(extremes * part), "minmax"))
        for part in torch.linspace(0.01, 1, 100)
    )
    assert float(found) == pytest.approx(best, rel=1e-3)
    assert found <= errors(values, choose_qparams(seen(values), "minmax")).square().sum()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_smoothing_factors_are_those_of_the_paper_and_change_nothing(strength):
    weight, inputs = torch.randn(6, 4).double(), torch.randn(50, 4).double()
    inputs[:, 2] *= 1000
    weight[:, 1] = 0
    factor = smoothing_scale(weight, inputs.abs().amax(0), strength)
    for column in range(4):
        largest = max(abs(float(x)) for x in inputs[:, column])
        met = max(1e-5, *(abs(float(w)) for w in weight[:, column]))
        wanted = 1 / (largest**strength / met ** (1 - strength))
        assert float(factor[column]) == pytest.approx(wanted)
    torch.testing.assert_close((inputs * factor) @ (weight / factor).T, inputs @ weight.T)


def test_the_module_whose_rounding_hurts_most_comes_first(tiny_bert, looking):
    before = {name: value.clone() for name, value in tiny_bert.state_dict().items()}
    with torch.no_grad():
        # One weight beside which the others of the row round to nothing; its input is made zero.
        weight = tiny_bert.bert.encoder.layer[0].intermediate.dense.weight
        weight.mul_(5)
        weight[:, 7] = 3000
        tiny_bert.bert.encoder.layer[0].attention.output.LayerNorm.weight[7] = 0
        tiny_bert.bert.encoder.layer[0].attention.output.LayerNorm.bias[7] = 0
        changed = {name: value.clone() for name, value in tiny_bert.state_dict().items()}
    steps: list[str] = []
    found = sensitivities(
        tiny_bert, QuantizationConfig(), looking(tiny_bert), on_progress=steps.append
    )
    assert next(iter(found)) == "bert.encoder.layer.0.intermediate.dense"
    assert sorted(steps) == sorted(found)
    assert all(first >= second for first, second in itertools.pairwise(found.values()))
    # A divergence is never negative, but for float32 rounding of nearly equal logits.
    assert all(value > -1e-12 for value in found.values())
    assert before.keys() == changed.keys() == tiny_bert.state_dict().keys()
    assert all(torch.equal(value, tiny_bert.state_dict()[name]) for name, value in changed.items())


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("shift", [0.0, 2.0, -5.0])
def test_symmetric_steps_are_counted_from_zero(observer, shift):
    values = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + shift
    step, zero = choose_qparams(seen(values), observer, symmetric=True)
    assert zero.tolist() == [0]
    reach = float(values.abs().max())
    if observer == "minmax":
        assert float(step) == pytest.approx(reach / 127)
        assert errors(values, (step, zero)).abs().max() <= step / 2 * (1 + 1e-3)
    assert float(step) <= reach / 127 * (1 + 1e-6)
    if observer == "mse":
        tried = [torch.tensor([part * reach / 127]) for part in torch.linspace(0.01, 1, 100)]
        best = min(float(errors(values, (one, zero)).square().sum()) for one in tried)
        assert float(errors(values, (step, zero)).square().sum()) == pytest.approx(best, rel=1e-3)
