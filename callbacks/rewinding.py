"""Taking a run's learning rate, or its weights too, back to where they were before pruning."""

from typing import Any, Literal

import lightning as L
from torch.optim.lr_scheduler import LRScheduler

from lightning_compress.errors import InputError
from lightning_compress.pruning.rewinding import (
    extra_steps,
    rewind_schedule_,
    rewind_weights_,
    schedule_state,
    weights_state,
)
from lightning_compress.pruning.schedule import PruningSchedule


class Rewinding:
    """Remember where the pruning begins and go back there when it ends.

    Args:
        what: ``learning_rate``; or ``weights``, which takes both back; None does nothing.
    """

    def __init__(self, what: Literal["learning_rate", "weights"] | None) -> None:
        self._what = what
        # What was remembered, as plain data; empty before the pruning and after it.
        self.state: dict[str, Any] = {}

    def require_possible(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the learning-rate schedules.

        Raises:
            InputError: there is none, or one that does not advance with every optimizer step.
        """
        if self._what is None:
            return
        if not pl_module.automatic_optimization:
            raise InputError(
                "rewind: with manual optimization only the module itself can take its learning "
                "rate back; leave rewind out"
            )
        configs = trainer.lr_scheduler_configs
        by_step = [c.interval == "step" and c.frequency == 1 for c in configs]
        if not configs or not all(by_step) or any(c.reduce_on_plateau for c in configs):
            raise InputError(
                "rewind: needs a learning-rate schedule that advances with every step; return one "
                "from configure_optimizers with interval: step, or leave rewind out"
            )

    def remember(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state of this moment."""
        if self._what is not None:
            schedules = [schedule_state(scheduler) for scheduler in _schedulers(trainer)]
            weights = weights_state(pl_module) if self._what == "weights" else {}
            self.state = {"schedules": schedules, "weights": weights}

    def go_back(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Return to the state that was kept, and forget it."""
        if self._what is not None:
            schedules = self.state["schedules"]
            for scheduler, state in zip(_schedulers(trainer), schedules, strict=True):
                rewind_schedule_(scheduler, state)
        if self._what == "weights":
            rewind_weights_(pl_module, self.state["weights"], trainer.optimizers)
        self.state = {}

    def catch_up(self, trainer: L.Trainer, schedule: PruningSchedule, step: int) -> None:
        """Advance rewound learning rates so that they end with the run; beside Lightning's step."""
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
