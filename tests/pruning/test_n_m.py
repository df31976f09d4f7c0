import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.pruning.magnitude import NM, target_sparsity


def outside_by_loop(weight, mask, n, m):
    """For every group: rank by kept first, larger first, earlier first; all but n are outside."""
    rows, columns = weight.shape
    outside = torch.zeros(weight.shape, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, columns, m):
            group = sorted(
                range(start, start + m),
                key=lambda c: (-abs(float(weight[row, c])) if mask[row, c] else 1.0, c),
            )
            outside[row, group[n:]] = True
    return outside


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (2, 3)])
def test_the_n_largest_of_each_group_are_inside(n, m):
    torch.manual_seed(0)
    weight = torch.randn(5, 24).mul(2).round().div(2)  # rounded, so that there are ties
    mask = torch.rand(5, 24) > 0.3
    expected = outside_by_loop(weight, mask, n, m)
    assert torch.equal(NM(n, m).outside(weight, mask), expected)
    assert torch.equal(NM(n, m).outside(weight.t(), mask.t(), dim=0), expected.t())
    assert torch.equal(NM(n, m).outside(weight.half(), mask), expected)


def test_reading_and_writing():
    assert NM.parse("2:4") == NM(2, 4)
    assert str(NM(2, 4)) == "2:4"
    assert NM(1, 4).sparsity == 0.75


@pytest.mark.parametrize("text", ["", "2", "4:2", "0:4", "4:4", "2:4:8", "a:b", "-1:4", " 2:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(InputError, match=r"pattern: .* is not n:m"):
        NM.parse(text)


def test_the_target_comes_from_sparsity_or_pattern():
    assert target_sparsity(0.8, None) == 0.8
    assert target_sparsity(0.0, None) == 0.0
    assert target_sparsity(None, NM(1, 4)) == 0.75
    assert target_sparsity(0.333, NM(2, 3)) == NM(2, 3).sparsity


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 80, float("nan"), float("inf")])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(InputError, match=r"sparsity: .* not in \[0, 1\)"):
        target_sparsity(sparsity, None)


def test_no_target_and_a_contradiction_are_refused():
    with pytest.raises(InputError, match="give the fraction"):
        target_sparsity(None, None)
    with pytest.raises(InputError, match=r"0\.8 contradicts pattern: 2:4, which means 0\.5"):
        target_sparsity(0.8, NM(2, 4))
