"""When a run prunes: dense warm-up, pruning phase, recovery.

:class:`PruningSchedule` gives the sparsity of a mask by optimizer step, :func:`pruning_steps` the
optimizer steps after which parts of a model are removed. :class:`Phases` holds the lengths of the
phases as the user gives them.

Source of the cubic schedule: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of
pruning for model compression", 2017, https://arxiv.org/abs/1710.01878.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_compress.errors import InputError, require_choice

Shape = Literal["one_shot", "linear", "cubic"]
Unit = Literal["run", "epochs", "steps"]


@dataclass(frozen=True)
class PruningSchedule:
    """Sparsity by optimizer step; step t is the state after t optimizer steps.

    Args:
        shape: how sparsity grows from ``begin`` to ``end``. ``one_shot``: all at once at ``end``;
            ``linear``; ``cubic``: fast at first and slowly at last,
            sparsity * (1 - (1 - progress)^3).
        sparsity: fraction of zeros from ``end`` on, in [0, 1]; it is 0 before ``begin``.
        begin: step of the first update of the masks.
        end: step of the last update.
        interval: steps between two updates.
        run: optimizer steps of the whole run.
    """

    shape: Shape
    sparsity: float
    begin: int
    end: int
    interval: int
    run: int

    def at(self, step: int) -> float:
        """Sparsity after ``step`` steps."""
        if step >= self.end:
            return self.sparsity
        if step < self.begin or self.shape == "one_shot":
            return 0.0
        progress = (step - self.begin) / (self.end - self.begin)
        if self.shape == "linear":
            return self.sparsity * progress
        return self.sparsity * (1 - (1 - progress) ** 3)

    def updates_at(self, step: int) -> bool:
        """Whether the masks are updated after ``step`` steps; always from ``end`` on."""
        if not self.begin <= step < self.end:
            return step >= self.end
        return (step - self.begin) % self.interval == 0


@dataclass(frozen=True)
class Phases:
    """Lengths of the phases of a run, as fractions of the run, epochs or optimizer steps.

    Args:
        shape: how sparsity grows, see :class:`PruningSchedule`.
        warmup: length of the dense phase at the start; None: 0.1 of the run.
        recovery: length of the phase at the end without pruning; None: 0.3 of the run. Must be
            None with ``one_shot``, which recovers for the rest of the run.
        interval: time between two updates of the masks; None: 0.02 of the run. Must be None with
            ``one_shot``.
        unit: ``run``: fractions of the run; ``epochs``, which may be fractions; ``steps``:
            optimizer steps.

    Raises:
        InputError: a length is negative, no integer number of steps, or has no meaning here.
    """

    shape: Shape
    warmup: float | None
    recovery: float | None
    interval: float | None
    unit: Unit

    def __post_init__(self) -> None:
        require_choice("schedule", self.shape, get_args(Shape))
        require_choice("unit", self.unit, get_args(Unit))
        lengths = {
            "warmup": self.warmup,
            "recovery": self.recovery,
            "interval": self.interval,
        }
        for name, length in lengths.items():
            if length is None:
                continue
            if not math.isfinite(length) or length < 0 or (name == "interval" and length == 0):
                raise InputError(f"{name}: {length} is not a length of time, in {self.unit}")
            if self.unit == "steps" and not float(length).is_integer():
                raise InputError(
                    f"{name}: {length} is not an integer number of steps; "
                    "for fractions of the run set unit: run"
                )
            if self.unit == "run" and length > 1:
                raise InputError(
                    f"{name}: {length} is more than the whole run; "
                    "for numbers above 1 set unit: epochs or unit: steps"
                )
            if self.shape == "one_shot" and name != "warmup":
                raise InputError(
                    f"{name}: has no meaning with schedule: one_shot, which prunes once, after "
                    "warmup, and recovers for the rest of the run; leave it out"
                )

    def in_steps(
        self, sparsity: float, run_steps: float, steps_per_epoch: float
    ) -> PruningSchedule:
        """The schedule for a run of ``run_steps`` optimizer steps.

        Raises:
            InputError: the run has no known length, or is too short for the phases.
        """
        if not 0 < run_steps < math.inf:
            raise InputError(
                "a pruning schedule needs a run of known length: set trainer.max_steps, or "
                "trainer.max_epochs with data that has a length"
            )
        if self.unit == "epochs" and not 0 < steps_per_epoch < math.inf:
            raise InputError(
                "unit: epochs needs training data that has a length; set unit: steps or unit: run"
            )
        run = int(run_steps)
        scale = {"run": run, "epochs": steps_per_epoch, "steps": 1}[self.unit]
        warmup = round(run / 10 if self.warmup is None else self.warmup * scale)
        recovery = round(3 * run / 10 if self.recovery is None else self.recovery * scale)
        interval = max(1, round(run / 50 if self.interval is None else self.interval * scale))
        if self.shape == "one_shot":
            if warmup > run:
                raise InputError(f"warmup: {warmup} steps are more than the run's {run} steps")
            return PruningSchedule(self.shape, sparsity, warmup, warmup, interval, run)
        phase = run - recovery - warmup
        if phase < interval:
            raise InputError(
                f"the pruning schedule does not fit into the run's {run} steps: {warmup} steps of "
                f"warmup and {recovery} of recovery leave {max(phase, 0)} for pruning, less than "
                f"one interval of {interval}; shorten them or train longer"
            )
        return PruningSchedule(self.shape, sparsity, warmup, run - recovery, interval, run)


def pruning_steps(begin: int, end: int, count: int) -> list[int]:
    """Optimizer steps after which a part is removed, evenly spread from ``begin`` to ``end``.

    Args:
        begin: end of the warm-up, the first of them.
        end: start of the recovery, the last of them.
        count: how many, at least 1; a single one is at ``begin``.

    Raises:
        InputError: there are fewer optimizer steps between the two.
    """
    if count > 1 and end - begin < count - 1:
        raise InputError(
            f"pruning_steps: {count} pruning steps do not fit into the {max(0, end - begin)} "
            "optimizer steps between warmup and recovery; shorten these, train longer, or take "
            "fewer pruning steps"
        )
    return [begin + (end - begin) * k // max(1, count - 1) for k in range(count)]
