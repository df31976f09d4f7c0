"""Going back, after pruning, to an earlier learning rate or to earlier weights.

Source: Renda, Frankle and Carbin, "Comparing Rewinding and Fine-tuning in Neural Network
Pruning", 2020, arXiv:2003.02389 (learning rate); Frankle, Dziugaite, Roy and Carbin, "Linear Mode
Connectivity and the Lottery Ticket Hypothesis", 2019, arXiv:1912.05671 (weights).

There the training is extended by the steps gone back. Here a run keeps its length: the learning
rate runs through the rest of its schedule once more, sped up so that both end together.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

State = dict[str, Any]


def schedule_state(scheduler: LRScheduler) -> State:
    """Where a learning-rate schedule stands, as plain data: its own state and the options
    (learning rate, betas, ...) of the groups of its optimizer.
    """
    groups = [
        {option: value for option, value in group.items() if option != "params"}
        for group in scheduler.optimizer.param_groups
    ]
    return copy.deepcopy({"schedule": scheduler.state_dict(), "groups": groups})


def rewind_schedule_(scheduler: LRScheduler, state: State) -> None:
    """Bring a learning-rate schedule and its optimizer's options back to an earlier state."""
    state = copy.deepcopy(state)
    scheduler.load_state_dict(state["schedule"])
    for group, options in zip(scheduler.optimizer.param_groups, state["groups"], strict=True):
        group.update(options)


def extra_steps(step: int, *, rewound_to: int, rewound_at: int, run_steps: int) -> int:
    """How many times more than once to advance a rewound schedule after ``step``.

    Over the steps from ``rewound_at`` to ``run_steps`` they add up so that the schedule, back at
    ``rewound_to``, passes through all that was left from there to ``run_steps``.
    """
    left = run_steps - rewound_at

    def position(after: int) -> int:
        return (after - rewound_at) * (run_steps - rewound_to) // left

    return position(step) - position(step - 1) - 1


@torch.no_grad()
def weights_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def rewind_weights_(
    module: nn.Module, state: Mapping[str, Tensor], optimizers: Iterable[Optimizer]
) -> None:
    """Bring back earlier weights; the optimizers start afresh, for their moments are of others."""
    module.load_state_dict(state)
    for optimizer in optimizers:
        optimizer.state.clear()
