"""Head pruning: attention heads are removed while a model trains."""

from lightning_compress.pruning.importance import UnitScore
from lightning_compress.pruning.selection import LayerMinimum, budget_of
from lightning_compress.types import KeywordsOf

from .gradual_pruning import GradualPruning, PruningOptions
from .unit_removal import UnitRemoval


class HeadPruning(GradualPruning):
    """Remove attention heads from any LightningModule's Hugging Face model while it trains.

    The heads are removed from the weights, so the model gets smaller and faster. With
    grouped-query attention a head is a key-value head with the query heads that share it. The run
    has a dense warm-up, then the pruning steps, then recovery.

    Args:
        removed_fraction: fraction of all heads that is removed, all layers together, in (0, 1).
        removed_count: or the number of heads that is removed, at least 1.
        minimum: number of heads that every layer keeps, at least 1.
        score: importance by which heads are kept: ``fisher`` or ``taylor`` (squared or absolute
            gradient of the loss by a gate on the head), ``activation`` (variance of its output),
            ``magnitude`` (its weights) or ``random`` (the baseline).
        refit: fit the outgoing weights of the remaining heads by least squares to the output of
            all heads. Otherwise the mean output of the removed heads is added to the bias.
        options: when heads are removed: ``pruning_steps``, ``warmup``, ``recovery``, ``unit`` and
            ``calibration_examples``, see :class:`GradualPruning`.

    Raises:
        InputError: before the training starts; an option is out of range, the budget cannot be
            met, the pruning steps do not fit into the run, or the module holds no Hugging Face
            model of a known family.

    Sources: ``lightning_compress.pruning.importance``, ``lightning_compress.pruning.selection`` and
    ``lightning_compress.pruning.reconstruction``.

    Example::

        HeadPruning(removed_fraction=0.5, pruning_steps=5, warmup=0.0, recovery=0.4)
    """

    def __init__(
        self,
        *,
        removed_fraction: float | None = None,
        removed_count: int | None = None,
        minimum: int = 1,
        score: UnitScore = "fisher",
        refit: bool = False,
        **options: KeywordsOf[PruningOptions],
    ) -> None:
        removal = UnitRemoval(
            budget_of(removed_fraction=removed_fraction, removed_count=removed_count),
            {"heads": LayerMinimum(minimum)},
            technique="head_pruning",
            score=score,
            refit=refit,
        )
        super().__init__(removal=removal, **options)
