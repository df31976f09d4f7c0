"""When to remove attention heads."""

from typing import Any

from lightning_compress.pruning.selection import LayerMinimum, budget_of

from .unit_pruning import UnitPruning


class HeadPruning(UnitPruning):
    """Remove attention heads from any LightningModule's Hugging Face model while it trains.

    The heads leave the model: it gets smaller and faster. With grouped-query attention a head is a
    key-value head with the query heads that share it.

    Args:
        removed_fraction: fraction of all heads that is removed, all layers together, in (0, 1).
        removed_count: or the number of heads that is removed, at least 1.
        minimum: how many heads every layer keeps at least.
        options: how and when, see :class:`UnitPruning` and :class:`RoundPruning`.

    Raises:
        InputError: an option is out of range, the budget cannot be met, the rounds do not fit into
            the run, or the module holds no Hugging Face model of a known family; all of it before
            the training starts.
    """

    def __init__(
        self,
        *,
        removed_fraction: float | None = None,
        removed_count: int | None = None,
        minimum: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            budget=budget_of(removed_fraction=removed_fraction, removed_count=removed_count),
            minimums={"heads": LayerMinimum(minimum)},
            technique="head_pruning",
            **options,
        )
        self.save_hyperparameters(logger=False)
