from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from lightning_compress.callbacks.rewinding import (
    extra_steps,
    rewind_schedule_,
    rewind_weights_,
    schedule_state,
    weights_state,
)

RUN = 30

SCHEDULES = {
    "linear": lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / RUN),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, RUN),
    "stairs": lambda optimizer: StepLR(optimizer, 7, 0.5),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=RUN + 1),
}


def options(optimizer):
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def build(name):
    layer = nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [
        {"params": [layer.weight]},
        {"params": [layer.bias], "lr": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    scheduler = SCHEDULES[name](optimizer)
    optimizer.step()
    return optimizer, scheduler


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rewound_schedule_repeats_what_it_did(name):
    optimizer, scheduler = build(name)
    for _ in range(5):
        scheduler.step()
    state = schedule_state(scheduler)
    first = []
    for _ in range(15):
        first.append(options(optimizer))
        scheduler.step()
    for _ in range(2):  # the state is not used up
        rewind_schedule_(scheduler, state)
        second = []
        for _ in range(15):
            second.append(options(optimizer))
            scheduler.step()
        assert second == first


@pytest.mark.parametrize(("back_to", "rewound_at"), [(0, 20), (3, 20), (5, 29), (10, 11)])
def test_a_rewound_schedule_ends_with_the_run_and_runs_evenly(back_to, rewound_at):
    position = back_to
    left = RUN - rewound_at
    for step in range(rewound_at + 1, RUN + 1):
        extra = extra_steps(step, rewound_to=back_to, rewound_at=rewound_at, run_steps=RUN)
        assert extra >= 0
        position += 1 + extra
        even = back_to + (step - rewound_at) * (RUN - back_to) / left
        assert even - 1 < position <= even
    assert position == RUN


def test_rewound_weights_are_what_they_were_and_optimizers_start_afresh():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    state = weights_state(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(3):
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    rewind_weights_(module, state, [optimizer])
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert optimizer.state_dict()["state"] == {}
