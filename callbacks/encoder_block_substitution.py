"""When to substitute encoder blocks: chosen and matched at the start, replaced while it trains."""

import math
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.charts import Chart
from lightning_compress.errors import InputError
from lightning_compress.models import structure_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import evaluating
from lightning_compress.models.layers import compact_shapes
from lightning_compress.progress import progress_bar
from lightning_compress.substitution.edit import (
    check_substitution,
    choices_of,
    settle_substitution_,
    stage_substitution_,
)
from lightning_compress.substitution.fit import prepare_
from lightning_compress.substitution.group_selection import Selection, check_groups, choose_groups
from lightning_compress.substitution.initialization import Start
from lightning_compress.substitution.progressive import draw_, probability_at

from .calibration_batches import calibration_for
from .figures import log_matching, log_substitution
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
    """Put compact encoders in the place of encoder blocks of any LightningModule's model.

    Before the first step groups of neighbouring layers are chosen; each gets a compact encoder
    between a down- and an up-projection beside it, which starts from what passes through the group
    and learns to say what the group says. While the model trains, more and more batches go through
    the compact encoders, until the old layers leave for good; the rest of the run is recovery.
    The old layers are not trained. With a DistillationModule the teacher is the model before.

    Args:
        groups: which layers, counted from 0, each group of neighbours; default: they are chosen.
        count: how many groups to choose.
        size: layers of each group that is chosen.
        selection: ``divergence`` (the groups without which the predictions change least, one after
            the other) or ``even``.
        keep_ends: never choose the first and the last layer.
        width: of the compact encoders: a number, or a fraction of the model's, which is rounded
            to a multiple of 8.
        depth: how many narrow layers each has.
        heads: of each narrow layer; default: as many of the model's size as fit, or two smaller.
        start: where a compact encoder starts: ``random``, ``zero`` (it says nothing),
            ``components`` (zero, and the down-projection keeps the principal components),
            ``least_squares`` (besides, the up-projection is fitted) or ``sliced`` (besides, the
            narrow layers are made of the old ones).
        match_steps: how many batches each learns from alone; 0: none.
        match_learning_rate: of that.
        replacing: share of the run in which old layers and compact encoders take turns; 0: they are
            replaced at once.
        probability: with which a batch goes through a compact encoder at the first step; it grows
            to one.
        calibration_examples: how many training examples choice, start and matching look at.

    Raises:
        InputError: an option is out of range, or the module holds no Hugging Face model whose
            layers can be substituted; before the training starts.

    Source: ``lightning_compress.substitution.edit`` and the files of
    ``lightning_compress.substitution`` name theirs.
    """

    charts: ClassVar = (
        Chart("replacing", ("^replacing_probability$",)),
        Chart("matching error", ("^matching error/",)),
    )

    def __init__(
        self,
        *,
        groups: list[list[int]] | None = None,
        count: int = 1,
        size: int = 1,
        selection: Selection = "divergence",
        keep_ends: bool = True,
        width: int | float = 0.25,
        depth: int = 1,
        heads: int | None = None,
        start: Start = "sliced",
        match_steps: int = 300,
        match_learning_rate: float = 1e-3,
        replacing: float = 0.5,
        probability: float = 0.3,
        calibration_examples: int = 512,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in (("count", count), ("size", size), ("depth", depth)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        for name, share in (("replacing", replacing), ("probability", probability)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} is a fraction between 0 and 1, not {share}")
        if match_steps < 0 or calibration_examples < 1 or match_learning_rate <= 0:
            raise InputError(
                "match_steps must be at least 0, calibration_examples at least 1 and "
                "match_learning_rate positive"
            )
        for name, chosen, ways in (("start", start, Start), ("selection", selection, Selection)):
            if chosen not in get_args(ways):
                raise InputError(f"{name} is one of {', '.join(get_args(ways))}, not {chosen!r}")
        if isinstance(width, float) and not 0 < width <= 1:
            raise InputError(f"width is a number, or a fraction of the model's, not {width}")
        self._begun = False
        self._seed = "0"  # of the run that began
        self._until = 0  # the step at which the old layers leave
        self._find_unused = False  # what the user told DDP

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that it can be done, before anything is trained."""
        require_reshapable(trainer)
        model = reshapable_model(pl_module)
        if self._begun:
            return
        options = self.hparams
        groups = options["groups"]
        layers = len(structure_of(model).layers)
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
            check_groups(
                layers,
                groups=options["count"],
                size=options["size"],
                keep_ends=options["keep_ends"],
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose, start and match the compact encoders."""
        run, _ = run_length(trainer)
        if self.hparams["replacing"] and not math.isfinite(run):
            raise InputError(
                "replacing is a share of the run, and this run has no end: set trainer.max_epochs "
                "or trainer.max_steps, or replacing to 0"
            )
        self._until = round(self.hparams["replacing"] * run) if self.hparams["replacing"] else 0
        model = reshapable_model(pl_module)
        if not self._begun:
            dense_models.save(trainer, pl_module)
            self._seed = run_seed()
            self._begin(trainer, model)
            self._begun = True
            rebuild_optimizers(trainer)
        if not self.target_reached:
            self._settle_if_due(trainer, pl_module)
        if not self.target_reached:
            self._find_unused = find_unused_parameters(trainer, True)
        follow_reshaping(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Decide by which way this batch goes, the same on all processes."""
        if self.target_reached:
            return
        model = reshapable_model(pl_module)
        step = steps_done(trainer, pl_module)
        chance = probability_at(step, until=self._until, first=self.hparams["probability"])
        draw_(choices_of(model), chance, f"{self._seed}-{trainer.fit_loop.total_batch_idx}")
        every = log_interval(trainer)
        if every and step % every == 0:
            for logger in trainer.loggers:
                logger.log_metrics({"replacing_probability": chance}, step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Let the old layers leave when it is time."""
        if self.target_reached:
            return
        if self._settle_if_due(trainer, pl_module):
            find_unused_parameters(trainer, self._find_unused)
            follow_reshaping(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so if the run ended too soon."""
        self._progress.warn_unless_reached(
            trainer,
            pl_module,
            due=self._until,
            state="the original layers are still in the model",
            remedy="lower replacing",
        )

    def state_dict(self) -> dict[str, Any]:
        """Progress, as plain data."""
        return {**super().state_dict(), "begun": self._begun, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring progress back."""
        super().load_state_dict(state_dict)
        self._begun = state_dict["begun"]
        self._seed = state_dict["seed"]

    def _width(self, model: "PreTrainedModel") -> int:
        width: int | float = self.hparams["width"]
        full = int(model.config.hidden_size)
        return width if isinstance(width, int) else max(8, 8 * round(width * full / 8))

    def _begin(self, trainer: L.Trainer, model: "PreTrainedModel") -> None:
        options = self.hparams
        calibration = calibration_for(trainer, model, options["calibration_examples"])
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._seed))
            groups = options["groups"] or choose_groups(
                model,
                calibration,
                groups=options["count"],
                size=options["size"],
                by=options["selection"],
                keep_ends=options["keep_ends"],
            )
            require_agreement(trainer, digest_of(groups), "which layers to substitute")
            log_substitution(trainer, model, groups, self._width(model), options["depth"])
            stage_substitution_(
                model,
                groups,
                width=self._width(model),
                depth=options["depth"],
                heads=options["heads"],
                technique="encoder_block_substitution",
            )
            self._prepare(trainer, model, groups, calibration)
        for choice in choices_of(model):  # made in eval mode
            choice.training = model.training
            choice.new.train(model.training)

    def _prepare(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        groups: list[list[int]],
        calibration: Calibration,
    ) -> None:
        """Start and match the compact encoders, and tell how well."""
        options = self.hparams
        steps = len(groups) * options["match_steps"]
        with progress_bar(steps, shown=trainer.progress_bar_callback is not None) as advance:
            found = prepare_(
                choices_of(model),
                calibration,
                structure_of(model).family,
                start=options["start"],
                steps=options["match_steps"],
                learning_rate=options["match_learning_rate"],
                on_step=lambda group: advance(f"matching layers {groups[group]}", 1),
            )
            for group, one in zip(groups, found, strict=True):
                log_matching(trainer, group, one.curve, one.kept)
                rank_zero_info(
                    f"Layers {', '.join(map(str, group))}: a compact encoder explains "
                    f"{1 - one.start:.1%} of what they say at its start, {1 - one.end:.1%} once "
                    "matched."
                )

    def _settle_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Let the old layers leave if it is time, and tell."""
        model = reshapable_model(pl_module)
        if steps_done(trainer, pl_module) < self._until:
            return False
        settle_substitution_(model, trainer.optimizers)
        self._progress.reach_target(
            trainer, f"The compact encoders have taken over at step {trainer.global_step}."
        )
        return True
