"""Iterative magnitude pruning: masks grow gradually while a model trains."""

from typing import Any, ClassVar, get_args

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.compression_state import edited_module
from lightning_compress.errors import InputError, require_choice
from lightning_compress.models import apply_masks_, set_masks_
from lightning_compress.models.masks import (
    forget_pruned_,
    held_masks_,
    masks_digest,
    masks_of,
    pruned_of,
    zero_gradients_,
)
from lightning_compress.pruning.magnitude import (
    NM,
    Scope,
    input_dims,
    magnitude_masks,
    prunable_weights,
    target_sparsity,
)
from lightning_compress.pruning.schedule import Phases, PruningSchedule, Shape, Unit
from lightning_compress.types import Chart

from .model_edit import ModelEdit
from .rewinding import Rewinding, Rewound
from .run import dense_models, require_agreement, run_length

_TECHNIQUE = "magnitude_pruning"


class IterativeMagnitudePruning(ModelEdit):
    """Set the smallest weights of any LightningModule to zero gradually while it trains.

    A run has three phases: warm-up (dense), pruning (sparsity grows, the masks are updated every
    ``interval``) and recovery (masks fixed). Pruned weights are exactly zero after every optimizer
    step, with any optimizer, accumulation, precision and gradient clipping, and stay pruned. The
    keys of the module's ``state_dict`` do not change; masks and progress are in the
    checkpoint, and a resumed run is equal to an uninterrupted one, bit for bit. Masks that a model
    has already are kept and count. A Trainer takes one such callback: name all weights in
    ``weights``.

    Args:
        sparsity: fraction of the selected weights that is zero in the end, in [0, 1); default with
            ``pattern``: the sparsity that the pattern implies.
        schedule: how sparsity grows: ``cubic`` (Zhu and Gupta, 2017) fast at first, ``linear``
            evenly, ``one_shot`` all at once after the warm-up.
        warmup: length of the dense phase; default: 0.1 of the run.
        recovery: length of the phase with fixed masks at the end; default: 0.3 of the run. Not with
            ``one_shot``, where the rest of the run is recovery.
        interval: time between two updates of the masks; default: 0.02 of the run. Not with
            ``one_shot``.
        unit: what the three lengths are given in: ``run`` (fractions of the run), ``epochs`` (which
            may be fractions) or ``steps`` (optimizer steps; with manual optimization, batches).
        scope: ``global``: the smallest weights of all layers; ``layer``: the same sparsity in each.
        weights: shell patterns on parameter names, relative to the Hugging Face model inside the
            module, or to the module where there is none: ``["*.intermediate.dense.weight"]``.
            Default: the linear layers of the blocks.
        pattern: ``n:m``, such as ``2:4``: in the end at most n of m consecutive weights along the
            input of a layer are not zero.
        rewind: what returns to its state at the end of the warm-up when the target is reached:
            ``learning_rate`` (Renda et al., 2020) or ``weights``, with the learning rate (Frankle
            et al., 2020). The learning-rate schedule then continues from there, sped up to end
            with the run.

    Logs ``sparsity/total`` and ``sparsity/<layer>``, of the selected weights, at every update.

    Attributes:
        target_reached: whether the masks have their final sparsity.

    Raises:
        InputError: before the training starts; the options contradict each other, do not fit the
            run, or match no weight.

    Sources: ``lightning_compress.pruning.magnitude``, ``lightning_compress.pruning.schedule`` and
    ``lightning_compress.callbacks.rewinding``.

    Example::

        IterativeMagnitudePruning(sparsity=0.8, warmup=0.1, recovery=0.3)
    """

    remedy_for_two = "keep one, and name all weights in its option weights"
    charts: ClassVar = (
        Chart("sparsity", ("^sparsity/total$",), with_metric=True),
        Chart("sparsity of each layer", ("^sparsity/(?!total$)",)),
    )

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
        rewind: Rewound | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._pattern = NM.parse(pattern) if pattern is not None else None
        self._target = target_sparsity(sparsity, self._pattern)
        self._phases = Phases(schedule, warmup, recovery, interval, unit)
        require_choice("scope", scope, get_args(Scope))
        if rewind is not None and schedule == "one_shot":
            raise InputError(
                "rewind: one_shot prunes at the end of the warm-up, so there is nothing to "
                "rewind; leave it out, or take another schedule"
            )
        self._scope = scope
        self._weights = weights
        self._rewinding = Rewinding(rewind)
        self._begun = False  # the warm-up is over
        self._edited = False  # something has been pruned
        self._schedule: PruningSchedule
        self._hooks: dict[Optimizer, RemovableHandle] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the weights and the learning-rate schedule."""
        model = edited_module(pl_module)
        held_masks_(model)
        names = prunable_weights(model, self._weights)
        if self._pattern is not None:
            input_dims(model, names, self._pattern.m)
        self._rewinding.require_possible(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Spread the schedule over the run, and keep pruned weights zero from here on."""
        run, epoch = run_length(trainer)
        self._schedule = self._phases.in_steps(self._target, run, epoch)
        model = edited_module(pl_module)
        for optimizer in trainer.optimizers:
            self._hold(optimizer, model)
        self._log_sparsity(trainer, pl_module)
        self._advance(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep pruned weights out of the gradient's norm and the optimizer's moments."""
        model = edited_module(pl_module)
        zero_gradients_(model)
        self._hold(optimizer, model)  # another callback may have rebuilt it

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Update the masks when due; checkpoints and validation come after this hook."""
        self._advance(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the final sparsity, and warn if it is not the target."""
        self._release()
        self._log_sparsity(trainer, pl_module)
        reached = self._sparsity(pl_module)["total"]
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._schedule.end,
            state=f"the sparsity is {reached:.2%} and not {self._target:.2%}",
            remedy="shorten warmup and recovery",
        )

    def on_exception(self, *args: Any) -> None:
        """Remove the hooks on the optimizers."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data; the masks are in the compression state of the checkpoint."""
        return {
            **super().state_dict(),
            "begun": self._begun,
            "edited": self._edited,
            "before_pruning": self._rewinding.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        super().load_state_dict(state_dict)
        self._begun = state_dict["begun"]
        self._edited = state_dict["edited"]
        self._rewinding.state = state_dict["before_pruning"]

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._progress.enter_step(trainer, pl_module):
            return
        step = self._progress.step
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
        """Start the pruning phase."""
        schedule, weights = self._schedule, self._weights_of(edited_module(pl_module))
        rank_zero_info(
            f"Pruning {len(weights)} weights to {self._target:.1%} sparsity, "
            f"{schedule.shape}, steps {schedule.begin} to {schedule.end} of {schedule.run}."
        )
        self._rewinding.remember(trainer, pl_module)
        self._log_sparsity(trainer, pl_module)  # so that the curve is flat during the warm-up
        self._begun = True

    def _update_masks(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = edited_module(pl_module)
        before, weights = masks_of(model), self._weights_of(model)
        after = magnitude_masks(
            weights,
            self._schedule.at(self._progress.step),
            masks=before,
            scope=self._scope,
            pattern=self._pattern,
            input_dims=input_dims(model, list(weights), self._pattern.m) if self._pattern else {},
        )
        require_agreement(trainer, masks_digest(after), "which weights to prune")
        if pruned_of(after, weights) == pruned_of(before, weights):
            return
        if not self._edited:
            dense_models.save(trainer, pl_module)
            self._edited = True
        set_masks_(model, {**before, **after}, technique=_TECHNIQUE)
        forget_pruned_(model, trainer.optimizers)
        self._log_sparsity(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rewind if asked to, and finish the pruning."""
        self._rewinding.go_back(trainer, pl_module)
        apply_masks_(edited_module(pl_module))
        sparsity, step = self._sparsity(pl_module)["total"], self._progress.step
        self._progress.reach_target(trainer, f"Reached {sparsity:.2%} sparsity at step {step}.")

    def _weights_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        # Every time, because layers may have been added or removed.
        return {name: parameters[name] for name in prunable_weights(model, self._weights)}

    def _sparsity(self, pl_module: L.LightningModule) -> dict[str, float]:
        """Sparsity of each selected weight, by name of the layer, and of all in ``total``."""
        model = edited_module(pl_module)
        counts = pruned_of(masks_of(model), self._weights_of(model))
        pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
        layers = {name.removesuffix(".weight"): zeros / of for name, (zeros, of) in counts.items()}
        return {**layers, "total": pruned / total}

    def _log_sparsity(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {f"sparsity/{name}": s for name, s in self._sparsity(pl_module).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=max(self._progress.step, 0))

    def _hold(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Keep pruned weights zero after every step of this optimizer."""
        if optimizer not in self._hooks:
            hook = optimizer.register_step_post_hook(lambda *_: apply_masks_(model))
            self._hooks[optimizer] = hook

    def _release(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
