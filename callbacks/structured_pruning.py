"""Structured pruning: heads and neurons are removed under one budget while a model trains."""

from lightning_compress.pruning.importance import UnitScore
from lightning_compress.pruning.selection import Budget, LayerMinimum
from lightning_compress.types import KeywordsOf

from .gradual_pruning import GradualPruning, PruningOptions
from .unit_removal import UnitRemoval


class StructuredPruning(GradualPruning):
    """Remove the heads and neurons that matter least for their cost, while a model trains.

    Works on any LightningModule around a Hugging Face model, which gets smaller and faster. The
    run has a dense warm-up, then the pruning steps, then recovery.

    Args:
        removed_macs_fraction: fraction of the blocks' multiply-accumulates (MACs) that is removed,
            in (0, 1), for examples as long as the training's are on average.
        minimum_heads: number of heads that every layer keeps, at least 1.
        minimum_neurons: number of neurons that every layer keeps, at least 1.
        multiple: the number of neurons that a layer keeps is a multiple of this, for the
            alignment that matrix kernels prefer.
        score: importance by which units are kept: ``fisher`` or ``taylor`` (squared or absolute
            gradient of the loss by a gate on the unit), ``activation`` (variance of its output),
            ``magnitude`` (its weights) or ``random`` (the baseline).
        refit: fit the outgoing weights of the remaining units by least squares to the output of
            all units. Otherwise the mean output of the removed units is added to the bias.
        options: when units are removed: ``pruning_steps``, ``warmup``, ``recovery``, ``unit`` and
            ``calibration_examples``, see :class:`GradualPruning`.

    Raises:
        InputError: before the training starts; an option is out of range, the budget cannot be
            met, the pruning steps do not fit into the run, or the module holds no Hugging Face
            model of a known family.

    Sources: ``lightning_compress.pruning.importance``, ``lightning_compress.pruning.selection`` and
    ``lightning_compress.pruning.reconstruction``.

    Example::

        StructuredPruning(removed_macs_fraction=0.5, pruning_steps=5, recovery=0.4)
    """

    def __init__(
        self,
        *,
        removed_macs_fraction: float,
        minimum_heads: int = 1,
        minimum_neurons: int = 8,
        multiple: int = 8,
        score: UnitScore = "fisher",
        refit: bool = False,
        **options: KeywordsOf[PruningOptions],
    ) -> None:
        removal = UnitRemoval(
            Budget(removed_macs_fraction=removed_macs_fraction),
            {
                "heads": LayerMinimum(minimum_heads),
                "neurons": LayerMinimum(minimum_neurons, multiple),
            },
            technique="structured_pruning",
            score=score,
            refit=refit,
        )
        super().__init__(removal=removal, **options)
