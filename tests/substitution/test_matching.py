import numpy as np
import pytest
import torch

from lightning_compress.substitution import block_distillation as matching
from lightning_compress.substitution.block_distillation import match_, matching_error, variance
from lightning_compress.substitution.captured import dense_outputs, passages, through
from lightning_compress.substitution.initialization import start_

from ..families import SUBSTITUTABLE


def seen(it, group=0):
    targets = dense_outputs(it.choices, it.calibration)
    return passages(it.choices, group, it.calibration, targets[group])


def test_the_error_is_a_share_of_the_variance_over_tokens(scene):
    it = scene()
    found, block = seen(it), it.choices[0].new
    torch.nn.init.normal_(block.up.weight)
    targets = np.concatenate([one.target[one.mask].numpy() for one in found])
    with torch.no_grad():
        said = np.concatenate([through(block, one)[one.mask].numpy() for one in found])
    spread = targets.var(0, ddof=1).mean()
    assert float(variance(found)) == pytest.approx(spread, rel=1e-6)
    wanted = ((said - targets) ** 2).mean() / spread
    assert matching_error(block, found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("family", SUBSTITUTABLE)
@pytest.mark.parametrize("start", ["zero", "sliced"])
def test_matching_lowers_the_error_and_touches_nothing_else(scene, family, start):
    it = scene(family, dtype=torch.float32)
    found, block = seen(it, 1), it.choices[1].new
    start_(it.choices[1], found, start, family)
    before = {name: value.clone() for name, value in it.model.state_dict().items()}
    error = matching_error(block, found)
    told: list[float] = []
    match_(block, found, steps=40, learning_rate=1e-2, on_step=told.append)
    assert matching_error(block, found) < 0.9 * error
    assert len(told) == 40
    assert np.mean(told[-5:]) < np.mean(told[:5])
    own = {f"{name}.new." for name, module in it.model.named_modules() if module is it.choices[1]}
    for name, value in it.model.state_dict().items():
        same = torch.equal(value, before[name])
        assert (
            same is not name.startswith(tuple(own))
            or name.endswith("k_lin.bias")
            or ("key.bias" in name)
        )  # a key's bias changes nothing, and so may stay
    assert all(weight.grad is None for weight in it.model.parameters())


def test_batches_come_in_an_order_of_torchs_generator_all_before_any_again(scene, monkeypatch):
    it = scene(dtype=torch.float32)
    found = [*seen(it)] * 3  # six, told apart by where they are
    found = [type(one)(**vars(one)) for one in found]
    order: list[int] = []

    def watched(block, passage):
        order.append(next(i for i, one in enumerate(found) if one is passage))
        return through(block, passage)

    monkeypatch.setattr(matching, "through", watched)
    orders, weights = [], []
    for seed in (1, 1, 2):
        it = scene(dtype=torch.float32)
        order.clear()
        torch.manual_seed(seed)
        match_(it.choices[0].new, found, steps=15, learning_rate=1e-3)
        orders.append(list(order))
        weights.append(it.choices[0].new.up.weight.detach())
    for one in orders:
        assert sorted(one[:6]) == sorted(one[6:12]) == list(range(6))
    assert orders[0] == orders[1] != orders[2]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_learning_rate_rises_and_falls_to_nothing(scene, monkeypatch):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *args, **options):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    it = scene(dtype=torch.float32)
    match_(it.choices[0].new, seen(it), steps=100, learning_rate=0.1)
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=0.01)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001


def test_what_came_before_the_matching_is_forgotten(scene):
    it = scene(dtype=torch.float32)
    block = it.choices[0].new
    found = seen(it)
    other = scene(dtype=torch.float32)
    for weight in block.parameters():
        weight.grad = torch.ones_like(weight)
    for one in (it, other):
        torch.manual_seed(0)
        match_(one.choices[0].new, found, steps=3, learning_rate=1e-2)
    for one, two in zip(block.parameters(), other.choices[0].new.parameters(), strict=True):
        assert torch.equal(one, two)
