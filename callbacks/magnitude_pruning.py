"""When to prune by magnitude: gradually during a run, then recover with the masks fixed."""

from typing import Any, ClassVar, Literal

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.errors import InputError
from lightning_compress.models import apply_masks_, set_masks_, transformer_in
from lightning_compress.models.masks import (
    forget_pruned_,
    masks_digest,
    masks_of,
    pack_mask,
    pruned_of,
    unpack_mask,
    zero_gradients_,
)
from lightning_compress.pruning.magnitude import NM, Scope, magnitude_masks, target_sparsity
from lightning_compress.pruning.prunable import input_dims, prunable_weights
from lightning_compress.pruning.schedule import Phases, PruningSchedule, Shape, Unit

from .rewinding import Rewinding
from .run import keep_dense, require_agreement, restart_selection, run_length, steps_done

_TECHNIQUE = "magnitude_pruning"


class IterativeMagnitudePruning(L.Callback, HyperparametersMixin):
    """Prune the smallest weights of any LightningModule step by step while it trains.

    A run has three phases: warm-up (dense), pruning (sparsity grows, the masks are updated every
    ``interval``) and recovery (masks fixed). Pruned weights are exactly zero after every
    optimizer step, under whatever optimizer, accumulation, precision and gradient clipping; they
    never come back. ``state_dict`` keeps its keys; masks and progress are the callback's state,
    so a resumed run goes on bit for bit. A model that comes with masks keeps them, and they count.

    Args:
        sparsity: fraction of the chosen weights that is zero in the end, in [0, 1); can be left
            out with ``pattern``, which implies it.
        schedule: how sparsity grows: ``cubic`` (Zhu and Gupta, 2017) fast at first, ``linear``
            evenly, ``one_shot`` all at once after the warm-up.
        warmup: length of the dense phase; default: a tenth of the run.
        recovery: length of the phase with fixed masks at the end; default: three tenths of the
            run. Not with ``one_shot``, which recovers for what is left of the run.
        interval: time between two updates of the masks; default: a fiftieth of the run. Not with
            ``one_shot``.
        unit: what the three lengths are given in: ``run`` (fractions of the run), ``epochs``
            (fractions of one too) or ``steps`` (optimizer steps; with manual optimization,
            batches).
        scope: ``global``: the smallest weights of all; ``layer``: the same sparsity in each.
        weights: shell patterns on parameter names, relative to the Hugging Face model inside the
            module, or to the module where there is none: ``["*.intermediate.dense.weight"]``.
            Default: the linear layers of the blocks.
        pattern: ``n:m``, such as ``2:4``: in the end at most n of m consecutive weights along the
            input of a layer are not zero.
        rewind: what goes back, when the target is reached, to where it was at the end of the
            warm-up: ``learning_rate`` (Renda et al., 2020) or ``weights`` and learning rate
            (Frankle et al., 2019). The learning rate's schedule then runs on from there, sped up
            to end with the run.

    Logs ``sparsity/total`` and ``sparsity/<layer>``, of the chosen weights, at every update.

    Attributes:
        target_reached: whether the masks have their final sparsity.

    Raises:
        InputError: the options contradict each other, do not fit the run, or match no weight;
            all of it before the training starts.
    """

    charts: ClassVar = {
        "sparsity": "^sparsity/total$",
        "sparsity of each layer": "^sparsity/(?!total$)",
    }

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        schedule: Shape = "cubic",
        warmup: float | None = None,
        recovery: float | None = None,
        interval: float | None = None,
        unit: Unit = "run",
        scope: Scope = "global",
        weights: list[str] | None = None,
        pattern: str | None = None,
        rewind: Literal["learning_rate", "weights"] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._pattern = NM.parse(pattern) if pattern is not None else None
        self._target = target_sparsity(sparsity, self._pattern)
        self._phases = Phases(schedule, warmup, recovery, interval, unit)
        if rewind is not None and schedule == "one_shot":
            raise InputError(
                "rewind: one_shot prunes where the warm-up ends, so there is nothing to go back "
                "to; leave it out, or take another schedule"
            )
        self._scope = scope
        self._weights = weights
        self._rewinding = Rewinding(rewind)
        self.target_reached = False
        self._step = -1  # the last step that was dealt with
        self._begun = False  # the warm-up is over
        self._edited = False  # something has been pruned
        self._pl_module: L.LightningModule
        self._schedule: PruningSchedule
        self._hooks: dict[Optimizer, RemovableHandle] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second callback of this kind: the two would undo each other's masks."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        if sum(isinstance(callback, IterativeMagnitudePruning) for callback in callbacks) > 1:
            raise InputError(
                "trainer.callbacks: IterativeMagnitudePruning is given twice; keep one, and name "
                "all weights in its option weights"
            )
        self._pl_module = pl_module

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the weights."""
        model = _masked_module(pl_module)
        names = prunable_weights(model, self._weights)
        if self._pattern is not None:
            input_dims(model, names, self._pattern.m)
        self._rewinding.require_possible(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay the schedule out over the run, and keep pruned weights zero from now on."""
        # Not earlier: to ask for the number of steps sets the training data up, and Lightning
        # resumes its position in them only if they are set up after the checkpoint is read.
        run, epoch = run_length(trainer)
        self._schedule = self._phases.in_steps(self._target, run, epoch)
        model = _masked_module(pl_module)
        for optimizer in trainer.optimizers:
            self._hold(optimizer, model)
        self._log_sparsity(trainer, pl_module)
        self._advance(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep pruned weights out of the gradient's norm and the optimizer's moments."""
        model = _masked_module(pl_module)
        zero_gradients_(model)
        self._hold(optimizer, model)  # another callback may have built it anew

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Prune if it is time to; before checkpoints and validation, which come after this."""
        self._advance(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the final sparsity, and say so if it is not what was asked for."""
        self._release()
        self._log_sparsity(trainer, pl_module)
        if not self.target_reached:
            reached = self._sparsity(pl_module)["total"]
            rank_zero_warn(
                f"the run ended at step {self._step}, before the pruning was done, as it would "
                f"have been at step {self._schedule.end}: the sparsity is {reached:.2%} and not "
                f"{self._target:.2%}; let it run on, or shorten warmup and pruning"
            )

    def on_exception(self, *args: Any) -> None:
        """Leave the optimizers as they were."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Masks, eight weights a byte, and progress, as plain data."""
        masks = masks_of(_masked_module(self._pl_module))
        return {
            "masks": {name: pack_mask(mask) for name, mask in masks.items()},
            "step": self._step,
            "begun": self._begun,
            "edited": self._edited,
            "target_reached": self.target_reached,
            "before_pruning": self._rewinding.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring masks and progress back."""
        model = _masked_module(self._pl_module)
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        if state_dict["masks"]:
            set_masks_(
                model,
                {name: unpack_mask(m, shapes[name]) for name, m in state_dict["masks"].items()},
                technique=_TECHNIQUE,
            )
        self._step = state_dict["step"]
        self._begun = state_dict["begun"]
        self._edited = state_dict["edited"]
        self.target_reached = state_dict["target_reached"]
        self._rewinding.state = state_dict["before_pruning"]

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do what is due after the current step, once."""
        step = steps_done(trainer, pl_module)
        if step == self._step:  # in the middle of accumulation, or resumed
            return
        self._step = step
        if self.target_reached:
            self._rewinding.catch_up(trainer, self._schedule, step)
            return
        if step >= self._schedule.begin and not self._begun:
            self._begin(trainer, pl_module)
        if self._schedule.updates_at(step):
            self._update_masks(trainer, pl_module)
        if step >= self._schedule.end:
            self._finish(trainer, pl_module)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The warm-up is over."""
        schedule, weights = self._schedule, self._chosen(_masked_module(pl_module))
        rank_zero_info(
            f"Pruning {len(weights)} weights to {self._target:.1%} sparsity, "
            f"{schedule.shape}, steps {schedule.begin} to {schedule.end} of {schedule.run}."
        )
        self._rewinding.remember(trainer, pl_module)
        self._log_sparsity(trainer, pl_module)  # so that the curve stays flat until here
        self._begun = True

    def _update_masks(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = _masked_module(pl_module)
        before, weights = masks_of(model), self._chosen(model)
        after = magnitude_masks(
            weights,
            self._schedule.at(self._step),
            masks=before,
            scope=self._scope,
            pattern=self._pattern,
            input_dims=input_dims(model, list(weights), self._pattern.m) if self._pattern else {},
        )
        require_agreement(trainer, masks_digest(after), "which weights to prune")
        if pruned_of(after, weights) == pruned_of(before, weights):
            return
        if not self._edited:
            keep_dense(trainer, pl_module)
            self._edited = True
        set_masks_(model, {**before, **after}, technique=_TECHNIQUE)
        forget_pruned_(model, trainer.optimizers)
        self._log_sparsity(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The target is reached: rewind, and let the best checkpoint be chosen from here on."""
        self._rewinding.go_back(trainer, pl_module)
        apply_masks_(_masked_module(pl_module))
        self.target_reached = True
        restart_selection(trainer)
        rank_zero_info(
            f"Reached {self._sparsity(pl_module)['total']:.2%} sparsity at step {self._step}."
        )

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        # Asked anew, for layers may have come or gone.
        return {name: parameters[name] for name in prunable_weights(model, self._weights)}

    def _sparsity(self, pl_module: L.LightningModule) -> dict[str, float]:
        """Of each chosen weight by the name of its layer, and in ``total``."""
        model = _masked_module(pl_module)
        counts = pruned_of(masks_of(model), self._chosen(model))
        pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
        layers = {name.removesuffix(".weight"): zeros / of for name, (zeros, of) in counts.items()}
        return {**layers, "total": pruned / total}

    def _log_sparsity(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {f"sparsity/{name}": s for name, s in self._sparsity(pl_module).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=max(self._step, 0))

    def _hold(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Keep pruned weights zero whatever this optimizer does."""
        if optimizer not in self._hooks:
            hook = optimizer.register_step_post_hook(lambda *_: apply_masks_(model))
            self._hooks[optimizer] = hook

    def _release(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}


def _masked_module(pl_module: L.LightningModule) -> nn.Module:
    """The module that carries the masks."""
    return transformer_in(pl_module) or pl_module
