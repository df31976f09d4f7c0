"""When to remove feed-forward neurons."""

from typing import Any

from lightning_compress.pruning.selection import LayerMinimum, budget_of

from .unit_pruning import UnitPruning


class NeuronPruning(UnitPruning):
    """Remove feed-forward neurons from any LightningModule's Hugging Face model while it trains.

    The neurons leave the model: it gets smaller and faster.

    Args:
        removed_fraction: fraction of all feed-forward neurons that is removed, all layers
            together, in (0, 1).
        removed_count: or the number of neurons that is removed, at least 1.
        minimum: how many neurons every layer keeps at least.
        multiple: the number that a layer keeps is a multiple of this, which hardware likes.
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
        minimum: int = 8,
        multiple: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(
            budget=budget_of(removed_fraction=removed_fraction, removed_count=removed_count),
            minimums={"neurons": LayerMinimum(minimum, multiple)},
            technique="neuron_pruning",
            **options,
        )
        self.save_hyperparameters(logger=False)
