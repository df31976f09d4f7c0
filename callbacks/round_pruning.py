"""When to remove parts of a model: in rounds, with training between them and after."""

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import evaluating
from lightning_compress.pruning.schedule import Phases, Unit, pruning_steps

from .calibration_batches import calibration_for
from .model_edit import ModelEdit, follow_reshaping, require_reshapable, reshapable_model
from .run import keep_dense, restart_selection, run_length, steps_done

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoundPruning(ModelEdit):
    """Remove parts of the Hugging Face model inside any LightningModule, in rounds.

    The model trains dense during the warm-up; then come the rounds, evenly spread, each of which
    removes the same amount; the rest of the run is recovery. Optimizer, checkpoints and processes
    follow the model's shape, and a resumed run goes on bit for bit.

    Args:
        pruning_steps: number of steps in which the parts are removed, at least 1; a single one is
            right after the warm-up.
        warmup: length of the dense phase; default: a tenth of the run.
        recovery: length of the phase at the end without removals; default: three tenths of the
            run. With one round it is what is left of the run.
        unit: what the two lengths are given in: ``run`` (fractions of the run), ``epochs``
            (fractions of one too) or ``steps`` (optimizer steps).
        calibration_examples: how many training examples a round looks at to score.

    Attributes:
        target_reached: whether all rounds are done.
    """

    def __init__(
        self,
        *,
        pruning_steps: int = 5,
        warmup: float | None = None,
        recovery: float | None = None,
        unit: Unit = "run",
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        if pruning_steps < 1:
            raise InputError(f"pruning_steps must be at least 1, not {pruning_steps}")
        if calibration_examples < 1:
            raise InputError(f"calibration_examples must be at least 1, not {calibration_examples}")
        self._count = pruning_steps
        self._phases = Phases("linear", warmup, recovery, None, unit)
        self._calibration_examples = calibration_examples
        self._step = -1  # the last step that was dealt with
        self._done = 0  # rounds
        self._steps: list[int] = []

    @abstractmethod
    def _check(self, model: "PreTrainedModel") -> None:
        """Refuse what cannot be done to this model, before anything is trained."""

    @abstractmethod
    def _prune(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        calibration: Calibration,
        progress: float,
    ) -> None:
        """Remove parts until ``progress``, a fraction, of all that is to go is gone."""

    @abstractmethod
    def _remaining(self, model: "PreTrainedModel") -> str:
        """What is left, in words."""

    @abstractmethod
    def _log(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        """Log what is left."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second callback of this kind, and follow the shapes of checkpoints."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        if sum(type(callback) is type(self) for callback in callbacks) > 1:
            raise InputError(f"trainer.callbacks: {type(self).__name__} is given twice; keep one")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that it can be done."""
        require_reshapable(trainer)
        self._check(reshapable_model(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay the rounds out over the run."""
        # Not earlier: to ask for the number of steps sets the training data up, and Lightning
        # resumes its position in them only if they are set up after the checkpoint is read.
        run, epoch = run_length(trainer)
        schedule = self._phases.in_steps(1.0, run, epoch)
        self._steps = pruning_steps(schedule.begin, schedule.end, self._count)
        self._log(trainer, reshapable_model(pl_module))
        self._advance(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Remove what is due; before checkpoints and validation, which come after this."""
        self._advance(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so if the run ended too soon."""
        if not self.target_reached:
            rank_zero_warn(
                f"the run ended after {self._step} steps, when {self._done} of {self._count} "
                f"rounds of {type(self).__name__} were done (the last is due at step "
                f"{self._steps[-1]}): let it run on, or shorten warmup and recovery"
            )

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {**super().state_dict(), "step": self._step, "done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring progress back."""
        super().load_state_dict(state_dict)
        self._step = state_dict["step"]
        self._done = state_dict["done"]

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do what is due after the current step, once."""
        step = steps_done(trainer, pl_module)
        if step == self._step:  # in the middle of accumulation, or resumed
            return
        self._step = step
        due = sum(start <= step for start in self._steps)
        if due == self._done:
            return
        model = reshapable_model(pl_module)
        keep_dense(trainer, pl_module)
        calibration = calibration_for(trainer, model, self._calibration_examples)
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)) + due)
            self._prune(trainer, model, calibration, due / self._count)
        follow_reshaping(trainer)
        self._done = due
        self._log(trainer, model)
        rank_zero_info(
            f"Round {due} of {self._count} at step {step}: {self._remaining(model)} remain."
        )
        if due == self._count:
            self.target_reached = True
            restart_selection(trainer)
