"""Rewinding after pruning: the learning rate, or the weights too, return to an earlier step.

Sources: Renda, Frankle and Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
2020, https://arxiv.org/abs/2003.02389 (learning rate); Frankle, Dziugaite, Roy and Carbin, "Linear
Mode Connectivity and the Lottery Ticket Hypothesis", 2020, https://arxiv.org/abs/1912.05671
(weights).

Both extend the training by the steps that are rewound. Here a run keeps its length: the learning
rate passes through the rest of its schedule once more, sped up so that both end together.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_compress.errors import InputError, require_choice
from lightning_compress.pruning.schedule import PruningSchedule

State = dict[str, Any]
Rewound = Literal["learning_rate", "weights"]


class Rewinding:
    """Keeps the training state at the end of the warm-up and returns to it after the pruning.

    Args:
        what: ``learning_rate``; ``weights``, which rewinds both; None does nothing.

    Attributes:
        state: the training state that is kept, as plain data; empty before and after the pruning.
    """

    def __init__(self, what: Rewound | None) -> None:
        if what is not None:
            require_choice("rewind", what, get_args(Rewound))
        self._what = what
        self.state: dict[str, Any] = {}

    def require_possible(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the run can be rewound, before the training starts.

        Raises:
            InputError: the run has no learning-rate schedule, or one that does not advance with
                every optimizer step, or the module optimizes manually.
        """
        if self._what is None:
            return
        if not pl_module.automatic_optimization:
            raise InputError(
                "rewind: with manual optimization only the module itself can rewind its "
                "learning rate; leave rewind out"
            )
        configs = trainer.lr_scheduler_configs
        by_step = [c.interval == "step" and c.frequency == 1 for c in configs]
        if not configs or not all(by_step) or any(c.reduce_on_plateau for c in configs):
            raise InputError(
                "rewind: needs a learning-rate schedule that advances with every step; return one "
                "from configure_optimizers with interval: step, or leave rewind out"
            )

    def remember(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the current training state."""
        if self._what is not None:
            schedules = [schedule_state(scheduler) for scheduler in _schedulers(trainer)]
            weights = weights_state(pl_module) if self._what == "weights" else {}
            self.state = {"schedules": schedules, "weights": weights}

    def go_back(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Return to the state that was kept, and drop it."""
        if self._what is not None:
            schedules = self.state["schedules"]
            for scheduler, state in zip(_schedulers(trainer), schedules, strict=True):
                rewind_schedule_(scheduler, state)
        if self._what == "weights":
            rewind_weights_(pl_module, self.state["weights"], trainer.optimizers)
        self.state = {}

    def catch_up(self, trainer: L.Trainer, schedule: PruningSchedule, step: int) -> None:
        """Advance rewound schedules beside Lightning's own step, so that they end with the run."""
        if self._what is None:
            return
        extra = extra_steps(
            step, rewound_to=schedule.begin, rewound_at=schedule.end, run_steps=schedule.run
        )
        for scheduler in _schedulers(trainer):
            for _ in range(extra):
                scheduler.step()


def _schedulers(trainer: L.Trainer) -> list[LRScheduler]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def schedule_state(scheduler: LRScheduler) -> State:
    """State of a learning-rate schedule and of the options (learning rate, betas, ...) of its
    optimizer's parameter groups, as plain data.
    """
    groups = [
        {option: value for option, value in group.items() if option != "params"}
        for group in scheduler.optimizer.param_groups
    ]
    return copy.deepcopy({"schedule": scheduler.state_dict(), "groups": groups})


def rewind_schedule_(scheduler: LRScheduler, state: State) -> None:
    """Set a learning-rate schedule and its optimizer's options to an earlier state."""
    state = copy.deepcopy(state)
    scheduler.load_state_dict(state["schedule"])
    for group, options in zip(scheduler.optimizer.param_groups, state["groups"], strict=True):
        group.update(options)


def extra_steps(step: int, *, rewound_to: int, rewound_at: int, run_steps: int) -> int:
    """How many times to advance a rewound schedule after ``step`` in addition to the usual once.

    From ``rewound_at`` to ``run_steps`` the schedule, which restarts at ``rewound_to``, then passes
    through all steps from ``rewound_to`` to ``run_steps``.
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
    """Restore earlier weights and clear the optimizers, whose moments belong to other weights."""
    module.load_state_dict(state)
    for optimizer in optimizers:
        optimizer.state.clear()
