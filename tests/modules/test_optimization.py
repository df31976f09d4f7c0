import math

import pytest
import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.modules.optimizers import adamw, warmed_up


def rates(schedule, warmup, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = warmed_up(optimizer, schedule, warmup, steps)
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen, scheduler.get_last_lr()[0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_rises_over_the_warm_up_falls_after_it_and_ends_at_zero(schedule):
    seen, end = rates(schedule, 0.2, 20)
    assert seen[:4] == pytest.approx([2 * (step + 1) / 5 for step in range(4)])
    fall = [(step - 4) / 16 for step in range(4, 20)]
    expected = {
        "linear": [2 * (1 - share) for share in fall],
        "cosine": [1 + math.cos(math.pi * share) for share in fall],
    }
    assert seen[4:] == pytest.approx(expected[schedule])
    assert end == pytest.approx(0, abs=1e-12)


def test_without_warm_up_it_starts_at_the_peak():
    assert rates("linear", 0.0, 5)[0][0] == 2.0


@pytest.mark.parametrize(("warmup", "steps"), [(-0.1, 5), (1.1, 5), (0.1, float("inf"))])
def test_what_does_not_work_is_named(warmup, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    with pytest.raises(InputError, match=r"model\.warmup|trainer\.max_epochs"):
        warmed_up(optimizer, "linear", warmup, steps)


def test_only_matrices_decay_and_frozen_weights_are_left_out(tiny_bert):
    tiny_bert.bert.embeddings.requires_grad_(False)
    decayed, spared = adamw(tiny_bert, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    names = {id(weight): name for name, weight in tiny_bert.named_parameters()}
    assert all("bias" in names[id(w)] or "LayerNorm" in names[id(w)] for w in spared["params"])
    assert all(names[id(w)].endswith("weight") for w in decayed["params"])
    seen = {id(w) for group in (decayed, spared) for w in group["params"]}
    assert seen == {id(w) for w in tiny_bert.parameters() if w.requires_grad}
