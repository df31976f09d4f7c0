"""When to remove attention heads."""

from typing import Any

from lightning_compress.pruning.selection import Limits, amount_of

from .unit_pruning import UnitPruning


class HeadPruning(UnitPruning):
    """Remove attention heads from any LightningModule's Hugging Face model while it trains.

    The heads leave the model: it gets smaller and faster. With grouped-query attention a head is a
    key-value head with the query heads that share it.

    Args:
        share: fraction of all heads that leaves, over all layers together.
        count: or how many heads leave.
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
        share: float | None = None,
        count: int | None = None,
        minimum: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            amount=amount_of(share=share, count=count),
            limits={"heads": Limits(minimum)},
            technique="head_pruning",
            **options,
        )
        self.save_hyperparameters(logger=False)
