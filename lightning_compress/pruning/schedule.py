"""How sparsity grows over a run: dense warm-up, pruning, recovery with the masks fixed.

When the rounds of a gradual removal are.
"""

import math
from dataclasses import dataclass
from typing import Literal

from lightning_compress.errors import InputError

Shape = Literal["one_shot", "linear", "cubic"]


Unit = Literal["run", "epochs", "steps"]


@dataclass(frozen=True)
class PruningSchedule:
    """Sparsity by step: 0 before ``begin``, ``sparsity`` from ``end`` on.

    ``shape`` says how it grows between them: ``one_shot`` not at all (all at once at ``end``),
    ``linear`` evenly, ``cubic`` fast while there is much to choose from and slowly at last:
    s * (1 - (1 - progress)^3). The masks are updated at ``begin``, every ``interval`` steps, and
    at ``end``. Step t is the state after t optimizer steps; the run has ``run`` of them.

    Source of ``cubic``: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of
    pruning for model compression", 2017, arXiv:1710.01878.
    """

    shape: Shape
    sparsity: float
    begin: int
    end: int
    interval: int
    run: int

    def at(self, step: int) -> float:
        """Sparsity that is due after ``step`` steps."""
        if step >= self.end:
            return self.sparsity
        if step < self.begin or self.shape == "one_shot":
            return 0.0
        progress = (step - self.begin) / (self.end - self.begin)
        if self.shape == "linear":
            return self.sparsity * progress
        return self.sparsity * (1 - (1 - progress) ** 3)

    def updates_at(self, step: int) -> bool:
        """Whether the masks are updated after ``step`` steps; from ``end`` on always."""
        if not self.begin <= step < self.end:
            return step >= self.end
        return (step - self.begin) % self.interval == 0


@dataclass(frozen=True)
class Phases:
    """The phases of a schedule as the user gives them, in units of the run, epochs or steps.

    Args:
        shape: how sparsity grows, see :class:`PruningSchedule`.
        warmup: length of the dense phase at the start; None is a tenth of the run.
        recovery: length of the phase with fixed masks at the end; None is three tenths of the
            run. ``one_shot`` has none: what is left after the pruning is the recovery.
        interval: time between two updates of the masks; None is a fiftieth of the run.
        unit: ``run``: fractions of the run; ``epochs``, also fractions of them; ``steps``:
            optimizer steps.

    Raises:
        InputError: a length is negative, not a whole number of steps, or has no meaning here.
    """

    shape: Shape
    warmup: float | None
    recovery: float | None
    interval: float | None
    unit: Unit

    def __post_init__(self) -> None:
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
                    f"{name}: {length} is not a whole number of steps; "
                    "for fractions of the run say unit: run"
                )
            if self.unit == "run" and length > 1:
                raise InputError(
                    f"{name}: {length} is more than the whole run; "
                    "for whole numbers say unit: epochs or unit: steps"
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
                "unit: epochs needs training data that has a length; say unit: steps or unit: run"
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


def round_steps(begin: int, end: int, rounds: int) -> list[int]:
    """Steps after which a part is removed: the first at ``begin``, the last at ``end``.

    Args:
        begin: end of the warm-up.
        end: start of the recovery.
        rounds: how many; one round is at ``begin``.

    Raises:
        InputError: the rounds do not fit between the two.
    """
    if rounds > 1 and end - begin < rounds - 1:
        raise InputError(
            f"rounds: {rounds} rounds do not fit into the {max(0, end - begin)} steps between "
            "warmup and recovery; shorten these, train longer, or take fewer rounds"
        )
    return [begin + (end - begin) * k // max(1, rounds - 1) for k in range(rounds)]
