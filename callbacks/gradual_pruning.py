"""Removal of parts of a model in several pruning steps, with training between them and after."""

from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import evaluating
from lightning_compress.pruning.schedule import Phases, Unit, pruning_steps
from lightning_compress.types import Chart

from .calibration_batches import calibration_for, check_calibration
from .model_edit import ModelEdit, follow_reshaping, require_reshapable, reshapable_model
from .run import dense_models, run_length, run_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Removal(Protocol):
    """What a pruning callback removes: heads and neurons, or layers."""

    charts: tuple[Chart, ...]

    def check(self, model: "PreTrainedModel") -> None:
        """Refuse a removal that cannot be done to this model, before anything is trained."""

    def remove_(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
        step: int,
    ) -> None:
        """Remove parts up to the fraction ``progress`` of the whole removal, at this step."""

    def remaining(self, model: "PreTrainedModel") -> str:
        """How many parts remain, for a message."""

    def log(self, trainer: L.Trainer, model: "PreTrainedModel", step: int) -> None:
        """Log how many parts remain."""

    def state_dict(self) -> dict[str, Any]:
        """What the removal remembers between pruning steps, as plain data."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""


class ScheduleOptions(TypedDict, total=False):
    """Options of :class:`GradualPruning` except ``pruning_steps``, documented there."""

    warmup: float | None
    recovery: float | None
    unit: Unit
    calibration_examples: int


class PruningOptions(ScheduleOptions, total=False):
    """Options of :class:`GradualPruning`, documented there."""

    pruning_steps: int


class GradualPruning(ModelEdit):
    """Removes parts of the Hugging Face model inside any LightningModule while it trains.

    Each pruning step removes the same amount. Optimizer, checkpoints and processes follow the
    model's shape, and a resumed run is equal to an uninterrupted one, bit for bit.

    Args:
        removal: what is removed.
        pruning_steps: number of steps in which the parts are removed, evenly spread from the end
            of the warm-up to the start of the recovery, at least 1; a single one is at the end of
            the warm-up.
        warmup: length of the dense phase at the start; default: 0.1 of the run.
        recovery: length of the phase at the end without removals; default: 0.3 of the run. With
            one pruning step the rest of the run is recovery.
        unit: what the two lengths are given in: ``run`` (fractions of the run), ``epochs`` (which
            may be fractions) or ``steps`` (optimizer steps).
        calibration_examples: number of training examples by which a pruning step scores the parts,
            at least 1.

    Attributes:
        target_reached: whether all pruning steps are done.
    """

    def __init__(
        self,
        removal: Removal,
        *,
        pruning_steps: int = 5,
        warmup: float | None = None,
        recovery: float | None = None,
        unit: Unit = "run",
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        # Those of the subclass too, and the defaults of those that it passes on.
        self.save_hyperparameters(ignore="removal", logger=False)
        if pruning_steps < 1:
            raise InputError(f"pruning_steps must be at least 1, not {pruning_steps}")
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")
        self._removal = removal
        self._count = pruning_steps
        self._phases = Phases("linear", warmup, recovery, None, unit)
        self._calibration_examples = calibration_examples
        self._done = 0  # pruning steps
        self._due_at: list[int] = []  # optimizer steps of the pruning steps

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Charts for TensorBoard."""
        return self._removal.charts

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the parts can be removed."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if not self._done:
            self._removal.check(model)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Spread the pruning steps over the run."""
        self._due_at = self._steps(trainer)
        model = reshapable_model(pl_module)
        if self._done < self._count:
            check_calibration(trainer, model)
        self._removal.log(trainer, model, max(self._progress.step, 0))
        self._advance(trainer, pl_module)

    def _steps(self, trainer: L.Trainer) -> list[int]:
        run, epoch = run_length(trainer)
        schedule = self._phases.in_steps(1.0, run, epoch)
        return pruning_steps(schedule.begin, schedule.end, self._count)

    def last_edit(self, trainer: L.Trainer) -> int:
        """The optimizer step of the last pruning step."""
        return self._steps(trainer)[-1]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Do the pruning step that is due; checkpoints and validation come after this hook."""
        self._advance(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the run ended before the last pruning step."""
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._due_at[-1],
            state=f"{self._done} of {self._count} pruning steps are done",
            remedy="shorten warmup and recovery",
        )

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {
            **super().state_dict(),
            "done": self._done,
            "removal": self._removal.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        super().load_state_dict(state_dict)
        self._done = state_dict["done"]
        self._removal.load_state_dict(state_dict["removal"])

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._progress.enter_step(trainer, pl_module):
            return
        step = self._progress.step
        due = sum(due_at <= step for due_at in self._due_at)
        if due == self._done:
            return
        model = reshapable_model(pl_module)
        dense_models.save(trainer, pl_module)
        calibration = calibration_for(trainer, model, self._calibration_examples)
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(run_seed()) + due)
            self._removal.remove_(trainer, model, calibration, due / self._count, step)
        follow_reshaping(trainer)
        self._done = due
        self._removal.log(trainer, model, max(step, 0))
        message = (
            f"Pruning step {due} of {self._count} at step {step}: "
            f"{self._removal.remaining(model)} remain."
        )
        if due < self._count:
            rank_zero_info(message)
        else:
            self._progress.reach_target(trainer, message)
