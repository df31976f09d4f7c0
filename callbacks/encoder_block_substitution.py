"""Encoder-block substitution while a model trains."""

import math
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.errors import InputError, require_choice, require_number
from lightning_compress.models import structure_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import evaluating
from lightning_compress.models.layers import compact_shapes
from lightning_compress.progress import progress_bar
from lightning_compress.substitution.block_distillation import fit_compact_blocks
from lightning_compress.substitution.edit import (
    check_substitution,
    finalize_substitution_,
    insert_switches_,
    replacement_probability,
    sample_switches_,
    switches_of,
)
from lightning_compress.substitution.group_selection import Selection, check_groups, choose_groups
from lightning_compress.substitution.initialization import Initialization
from lightning_compress.types import Chart

from .calibration_batches import calibration_for, require_predictions
from .figures import log_block_fit, log_substitution
from .model_edit import (
    ModelEdit,
    find_unused_parameters,
    follow_reshaping,
    rebuild_optimizers,
    require_reshapable,
    reshapable_model,
)
from .run import (
    dense_models,
    digest_of,
    log_interval,
    require_agreement,
    run_length,
    run_seed,
    steps_done,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EncoderBlockSubstitution(ModelEdit):
    """Replace groups of encoder layers in any LightningModule's model by compact blocks.

    Before the first step the groups are chosen, and a compact block (down-projection, narrow
    layers, up-projection) is initialized for each of them and trained alone to reproduce the
    group's outputs. During the run a growing fraction of the batches goes through the compact
    blocks, until the original layers, which are frozen, are dropped; the rest of the run is
    recovery. Add a DistillationModule with ``teacher: dense`` to distil from the original model.

    Args:
        groups: consecutive layers, counted from 0, of each group; default: they are chosen.
        num_groups: groups to choose.
        layers_per_group: layers of each chosen group.
        selection: ``divergence`` (greedily the groups without which the predictions change least)
            or ``even`` (evenly spaced).
        keep_ends: never choose the first and the last layer.
        width: hidden size of the narrow layers; default: by ``width_fraction``.
        width_fraction: hidden size of the narrow layers as a fraction of the model's, in (0, 1],
            rounded to a multiple of 8.
        depth: narrow layers in each compact block.
        heads: attention heads of each narrow layer; default: heads of the model's own size where
            the width is a multiple of it and larger, else 2.
        initialization: ``random``, ``zero`` (the up-projection is zero), ``components`` (also: the
            down-projection keeps the principal components of the input), ``least_squares`` (also:
            the up-projection is fitted) or ``sliced`` (also: the narrow layers are slices of the
            original ones).
        distil_steps: optimizer steps for which each compact block is trained alone; 0: none.
        distil_learning_rate: peak learning rate of these steps.
        replacement_fraction: fraction of the run, in [0, 1], during which batches go through either
            the original layers or the compact blocks; 0: only through the compact blocks.
        initial_probability: that a batch goes through a compact block at the first step, in [0, 1];
            it grows linearly to 1.
        calibration_examples: training examples for selection, initialization and distillation.

    Logs ``replacement_probability``, and for each group the ``block distillation error`` (squared
    error divided by the variance of the outputs) and the ``explained variance`` of the
    down-projection.

    Raises:
        InputError: an option is out of range, or the module holds no Hugging Face model whose
            layers can be substituted; before the training starts.

    Source: see ``lightning_compress.substitution.edit`` and the other files of
    ``lightning_compress.substitution``.
    """

    charts: ClassVar = (
        Chart("replacement", ("^replacement_probability$",)),
        Chart("block distillation error", ("^block distillation error/",)),
    )

    def __init__(
        self,
        *,
        groups: list[list[int]] | None = None,
        num_groups: int = 1,
        layers_per_group: int = 1,
        selection: Selection = "divergence",
        keep_ends: bool = True,
        width: int | None = None,
        width_fraction: float = 0.25,
        depth: int = 1,
        heads: int | None = None,
        initialization: Initialization = "sliced",
        distil_steps: int = 300,
        distil_learning_rate: float = 1e-3,
        replacement_fraction: float = 0.5,
        initial_probability: float = 0.3,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        _check_options(self.hparams)
        self._begun = False
        self._seed = "0"  # of the run that began
        self._final_step = 0  # at which the original layers are dropped
        self._find_unused = False  # the user's setting of DDP

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check model and options before anything is trained."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if self._begun:
            return
        options = self.hparams
        groups = options["groups"]
        if groups is None and compact_shapes(model):
            raise InputError(
                f"some layers of {type(model).__name__} are compact blocks already: name in groups "
                "which others to substitute"
            )
        check_substitution(
            model,
            [[0]] if groups is None else groups,
            width=self._width(model),
            heads=options["heads"],
        )
        if groups is None:
            if options["selection"] == "divergence":
                require_predictions(
                    model, "selection: divergence", "choose selection: even, or name the groups"
                )
            check_groups(len(structure_of(model).layers), **self._group_options())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the groups and fit the compact blocks."""
        fraction = self.hparams["replacement_fraction"]
        run, _ = run_length(trainer)
        if fraction and not math.isfinite(run):
            raise InputError(
                "replacement_fraction is a fraction of the run, and this run has no end: set "
                "trainer.max_epochs or trainer.max_steps, or replacement_fraction to 0"
            )
        self._final_step = round(fraction * run) if fraction else 0
        if not self._begun:
            dense_models.save(trainer, pl_module)
            self._seed = run_seed()
            self._substitute(trainer, reshapable_model(pl_module))
            self._begun = True
            rebuild_optimizers(trainer)
        if not self.target_reached:
            self._finalize_if_due(trainer, pl_module)
        if not self.target_reached:
            self._find_unused = find_unused_parameters(trainer, True)
        follow_reshaping(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Draw which compact blocks this batch goes through, the same on all processes."""
        if self.target_reached:
            return
        step = steps_done(trainer, pl_module)
        probability = replacement_probability(
            step, final_step=self._final_step, initial=self.hparams["initial_probability"]
        )
        key = f"{self._seed}-{trainer.fit_loop.total_batch_idx}"
        sample_switches_(switches_of(reshapable_model(pl_module)), probability, key)
        every = log_interval(trainer)
        if every and step % every == 0:
            for logger in trainer.loggers:
                logger.log_metrics({"replacement_probability": probability}, step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Drop the original layers when the step has come."""
        if not self.target_reached and self._finalize_if_due(trainer, pl_module):
            find_unused_parameters(trainer, self._find_unused)
            follow_reshaping(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the run ended too soon."""
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._final_step,
            state="the original layers are still in the model",
            remedy="lower replacement_fraction",
        )

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {**super().state_dict(), "begun": self._begun, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore progress."""
        super().load_state_dict(state_dict)
        self._begun = state_dict["begun"]
        self._seed = state_dict["seed"]

    def _group_options(self) -> dict[str, Any]:
        return {
            name: self.hparams[name] for name in ("num_groups", "layers_per_group", "keep_ends")
        }

    def _width(self, model: "PreTrainedModel") -> int:
        width: int | None = self.hparams["width"]
        if width is not None:
            return width
        exact: float = self.hparams["width_fraction"] * model.config.hidden_size
        return max(8, 8 * round(exact / 8))

    def _substitute(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        """Choose the groups, insert the switches and fit the compact blocks."""
        options = self.hparams
        calibration = calibration_for(trainer, model, options["calibration_examples"])
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._seed))
            groups = options["groups"] or choose_groups(
                model, calibration, selection=options["selection"], **self._group_options()
            )
            require_agreement(trainer, digest_of(groups), "which layers to substitute")
            log_substitution(trainer, model, groups, self._width(model), options["depth"])
            insert_switches_(
                model,
                groups,
                width=self._width(model),
                depth=options["depth"],
                heads=options["heads"],
                technique="encoder_block_substitution",
            )
            self._fit_blocks(trainer, model, groups, calibration)
        for switch in switches_of(model):  # built in eval mode
            switch.train_successor(model.training)

    def _fit_blocks(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        groups: list[list[int]],
        calibration: Calibration,
    ) -> None:
        """Initialize and distil the compact blocks, and log how well they fit."""
        steps = self.hparams["distil_steps"]
        shown = trainer.progress_bar_callback is not None
        with progress_bar(len(groups) * steps, shown=shown) as advance:
            results = fit_compact_blocks(
                switches_of(model),
                calibration,
                structure_of(model).family,
                initialization=self.hparams["initialization"],
                distil_steps=steps,
                learning_rate=self.hparams["distil_learning_rate"],
                on_step=lambda index: advance(f"distilling layers {groups[index]}", 1),
            )
            for group, result in zip(groups, results, strict=True):
                log_block_fit(trainer, group, result)
                rank_zero_info(
                    f"Layers {', '.join(map(str, group))}: the compact block explains "
                    f"{1 - result.initial_error:.1%} of the variance of their outputs after "
                    f"initialization, {1 - result.final_error:.1%} after block distillation."
                )

    def _finalize_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Drop the original layers if the step has come; returns whether it has."""
        if steps_done(trainer, pl_module) < self._final_step:
            return False
        finalize_substitution_(reshapable_model(pl_module), trainer.optimizers)
        self._progress.reach_target(
            trainer,
            f"The compact blocks have replaced the original layers at step {trainer.global_step}.",
        )
        return True


def _check_options(options: Any) -> None:
    """Raise an InputError that names the option which is out of range."""
    for name in ("num_groups", "layers_per_group"):
        if options[name] < 1:
            raise InputError(f"{name} must be at least 1, not {options[name]}")
    for name in ("replacement_fraction", "initial_probability"):
        if not 0 <= options[name] <= 1:
            raise InputError(f"{name} lies between 0 and 1, not {options[name]}")
    if not 0 < options["width_fraction"] <= 1:
        raise InputError(f"width_fraction lies in (0, 1], not {options['width_fraction']}")
    for name, least, most in (
        ("distil_steps", 0, 1e7),
        ("calibration_examples", 1, 1e12),
        ("distil_learning_rate", 1e-12, 1e3),
        ("depth", 1, 1e3),
        ("width", 1, 1e6),
        ("heads", 1, 1e4),
    ):
        require_number(name, 1 if options[name] is None else options[name], least=least, most=most)
    for name, choices in (("initialization", Initialization), ("selection", Selection)):
        require_choice(name, options[name], get_args(choices))
