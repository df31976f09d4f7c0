import pytest
import torch

from lightning_compress.models.modeling_quantized import quantize_affine
from lightning_compress.quantization.activation_stats import (
    ActivationStats,
    choose_qparams,
    smoothing_scale,
)


def stats_of(values):
    return ActivationStats(values.amax(0), values.amin(0), values)


def squared_error(values, qparams):
    return float(errors(values, qparams).square().sum())


def errors(values, qparams):
    scale, zero_point = qparams
    return (quantize_affine(values, scale, zero_point) - zero_point) * scale - values


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (3.0, 0.2), (-9.0, 2.0), (0.0, 1e-6)])
def test_minmax_clips_nothing(shift, spread):
    values = torch.randn(500, 8) * spread + shift
    scale, zero_point = choose_qparams(stats_of(values), "minmax")
    assert errors(values, (scale, zero_point)).abs().max() <= scale * (1.0 + 1e-3)
    # Zero is represented exactly.
    assert errors(torch.zeros(1), (scale, zero_point)).item() == 0
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    assert float(scale) == pytest.approx((high - low) / 255)


def test_percentile_clips_one_value_in_ten_thousand():
    values = torch.cat([torch.linspace(-1, 1, 20001), torch.tensor([1000.0])])[:, None]
    assert float(choose_qparams(stats_of(values), "percentile")[0]) == pytest.approx(
        2 / 255, rel=1e-3
    )
    assert float(choose_qparams(stats_of(values), "minmax")[0]) == pytest.approx(
        1001 / 255, rel=1e-3
    )


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_mse_finds_the_least_error_of_a_brute_force_search(shift):
    values = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).exp() * 0.1 + shift
    found = errors(values, choose_qparams(stats_of(values), "mse")).square().sum()
    extremes = torch.stack([values.min(), values.max()])[:, None]
    best = min(
        squared_error(values, choose_qparams(stats_of(extremes * part), "minmax"))
        for part in torch.linspace(0.01, 1, 100)
    )
    assert float(found) == pytest.approx(best, rel=1e-3)
    assert found <= errors(values, choose_qparams(stats_of(values), "minmax")).square().sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_smoothing_scales_are_those_of_the_paper_and_preserve_the_product(alpha):
    weight, inputs = torch.randn(6, 4).double(), torch.randn(50, 4).double()
    inputs[:, 2] *= 1000
    weight[:, 1] = 0
    scales = smoothing_scale(weight, inputs.abs().amax(0), alpha)
    for column in range(4):
        largest = max(abs(float(x)) for x in inputs[:, column])
        largest_weight = max(1e-5, *(abs(float(w)) for w in weight[:, column]))
        wanted = 1 / (largest**alpha / largest_weight ** (1 - alpha))
        assert float(scales[column]) == pytest.approx(wanted)
    torch.testing.assert_close((inputs * scales) @ (weight / scales).T, inputs @ weight.T)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("shift", [0.0, 2.0, -5.0])
def test_symmetric_zero_points_are_zero(observer, shift):
    values = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + shift
    scale, zero_point = choose_qparams(stats_of(values), observer, symmetric=True)
    assert zero_point.tolist() == [0]
    reach = float(values.abs().max())
    if observer == "minmax":
        assert float(scale) == pytest.approx(reach / 127)
        assert errors(values, (scale, zero_point)).abs().max() <= scale / 2 * (1 + 1e-3)
    assert float(scale) <= reach / 127 * (1 + 1e-6)
    if observer == "mse":
        tried = [torch.tensor([part * reach / 127]) for part in torch.linspace(0.01, 1, 100)]
        best = min(squared_error(values, (one, zero_point)) for one in tried)
        found = squared_error(values, (scale, zero_point))
        assert found == pytest.approx(best, rel=1e-3)
