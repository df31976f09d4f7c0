"""Neuron pruning: feed-forward neurons are removed while a model trains."""

from lightning_compress.pruning.importance import UnitScore
from lightning_compress.pruning.selection import LayerMinimum, budget_of
from lightning_compress.types import KeywordsOf

from .gradual_pruning import GradualPruning, PruningOptions
from .unit_removal import UnitRemoval


class NeuronPruning(GradualPruning):
    """Remove feed-forward neurons from any LightningModule's Hugging Face model while it trains.

    The neurons are removed from the weights, so the model gets smaller and faster. The run has a
    dense warm-up, then the pruning steps, then recovery.

    Args:
        removed_fraction: fraction of all feed-forward neurons that is removed, all layers
            together, in (0, 1).
        removed_count: or the number of neurons that is removed, at least 1.
        minimum: number of neurons that every layer keeps, at least 1.
        multiple: the number of neurons that a layer keeps is a multiple of this, for the
            alignment that matrix kernels prefer.
        score: importance by which neurons are kept: ``fisher`` or ``taylor`` (squared or absolute
            gradient of the loss by a gate on the neuron), ``activation`` (variance of its output),
            ``magnitude`` (its weights) or ``random`` (the baseline).
        refit: fit the outgoing weights of the remaining neurons by least squares to the output of
            all neurons. Otherwise the mean output of the removed neurons is added to the bias.
        options: when neurons are removed: ``pruning_steps``, ``warmup``, ``recovery``, ``unit`` and
            ``calibration_examples``, see :class:`GradualPruning`.

    Raises:
        InputError: before the training starts; an option is out of range, the budget cannot be
            met, the pruning steps do not fit into the run, or the module holds no Hugging Face
            model of a known family.

    Sources: ``lightning_compress.pruning.importance``, ``lightning_compress.pruning.selection`` and
    ``lightning_compress.pruning.reconstruction``.

    Example::

        NeuronPruning(removed_fraction=0.5, score="activation", refit=True)
    """

    def __init__(
        self,
        *,
        removed_fraction: float | None = None,
        removed_count: int | None = None,
        minimum: int = 8,
        multiple: int = 8,
        score: UnitScore = "fisher",
        refit: bool = False,
        **options: KeywordsOf[PruningOptions],
    ) -> None:
        removal = UnitRemoval(
            budget_of(removed_fraction=removed_fraction, removed_count=removed_count),
            {"neurons": LayerMinimum(minimum, multiple)},
            technique="neuron_pruning",
            score=score,
            refit=refit,
        )
        super().__init__(removal=removal, **options)
