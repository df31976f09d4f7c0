import numpy as np
import pytest
import torch

from lightning_compress.substitution import block_distillation
from lightning_compress.substitution.block_distillation import (
    block_error,
    distil_block_,
    target_variance,
)
from lightning_compress.substitution.captured import capture_block_io, capture_targets, run_block
from lightning_compress.substitution.initialization import initialize_

from ..families import SUBSTITUTABLE


def captured_io(staged, group=0):
    targets = capture_targets(staged.switches, staged.calibration)
    return capture_block_io(staged.switches, group, staged.calibration, targets[group])


def test_block_error_is_relative_to_the_variance_over_tokens(staged_substitution):
    staged = staged_substitution()
    found, block = captured_io(staged), staged.switches[0].successor
    torch.nn.init.normal_(block.up.weight)
    targets = np.concatenate([one.target[one.mask].numpy() for one in found])
    with torch.no_grad():
        outputs = np.concatenate([run_block(block, one)[one.mask].numpy() for one in found])
    spread = targets.var(0, ddof=1).mean()
    assert float(target_variance(found)) == pytest.approx(spread, rel=1e-6)
    wanted = ((outputs - targets) ** 2).mean() / spread
    assert block_error(block, found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("family", SUBSTITUTABLE)
@pytest.mark.parametrize("initialization", ["zero", "sliced"])
def test_distillation_lowers_the_error_and_changes_only_the_block(
    staged_substitution, family, initialization
):
    staged = staged_substitution(family, dtype=torch.float32)
    found, block = captured_io(staged, 1), staged.switches[1].successor
    initialize_(staged.switches[1], found, initialization, family)
    before = {name: value.clone() for name, value in staged.model.state_dict().items()}
    error = block_error(block, found)
    errors: list[float] = []
    distil_block_(block, found, steps=40, learning_rate=1e-2, on_step=errors.append)
    assert block_error(block, found) < 0.9 * error
    assert len(errors) == 40
    assert np.mean(errors[-5:]) < np.mean(errors[:5])
    own = {
        f"{name}.successor."
        for name, module in staged.model.named_modules()
        if module is staged.switches[1]
    }
    for name, value in staged.model.state_dict().items():
        same = torch.equal(value, before[name])
        assert (
            same is not name.startswith(tuple(own))
            or name.endswith("k_lin.bias")
            or ("key.bias" in name)
        )  # a key's bias changes nothing, and so may stay
    assert all(weight.grad is None for weight in staged.model.parameters())


def test_batch_order_comes_from_torch_seed_and_covers_all_batches_first(
    staged_substitution, monkeypatch
):
    staged = staged_substitution(dtype=torch.float32)
    found = [*captured_io(staged)] * 3  # six, errors apart by where they are
    found = [type(one)(**vars(one)) for one in found]
    order: list[int] = []

    def watched(block, io):
        order.append(next(i for i, one in enumerate(found) if one is io))
        return run_block(block, io)

    monkeypatch.setattr(block_distillation, "run_block", watched)
    orders, weights = [], []
    for seed in (1, 1, 2):
        staged = staged_substitution(dtype=torch.float32)
        order.clear()
        torch.manual_seed(seed)
        distil_block_(staged.switches[0].successor, found, steps=15, learning_rate=1e-3)
        orders.append(list(order))
        weights.append(staged.switches[0].successor.up.weight.detach())
    for one in orders:
        assert sorted(one[:6]) == sorted(one[6:12]) == list(range(6))
    assert orders[0] == orders[1] != orders[2]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_learning_rate_warms_up_and_decays_to_zero(staged_substitution, monkeypatch):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *args, **options):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    staged = staged_substitution(dtype=torch.float32)
    distil_block_(staged.switches[0].successor, captured_io(staged), steps=100, learning_rate=0.1)
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=0.01)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001


def test_earlier_gradients_are_cleared(staged_substitution):
    staged = staged_substitution(dtype=torch.float32)
    block = staged.switches[0].successor
    found = captured_io(staged)
    other = staged_substitution(dtype=torch.float32)
    for weight in block.parameters():
        weight.grad = torch.ones_like(weight)
    for one in (staged, other):
        torch.manual_seed(0)
        distil_block_(one.switches[0].successor, found, steps=3, learning_rate=1e-2)
    for one, two in zip(block.parameters(), other.switches[0].successor.parameters(), strict=True):
        assert torch.equal(one, two)
