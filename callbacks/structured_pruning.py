"""When to remove heads and neurons under one budget."""

from typing import Any

from lightning_compress.pruning.selection import Budget, LayerMinimum

from .unit_pruning import UnitPruning


class StructuredPruning(UnitPruning):
    """Remove heads and neurons together, whichever matters less for what it costs, while training.

    Works on any LightningModule around a Hugging Face model, which gets smaller and faster.

    Args:
        removed_macs_fraction: fraction of the blocks' multiply-accumulates (MACs) that is removed,
            in (0, 1), for examples as long as the training's are on average.
        minimum_heads: how many heads every layer keeps at least.
        minimum_neurons: how many neurons every layer keeps at least.
        multiple: the number of neurons that a layer keeps is a multiple of this, which hardware
            likes.
        options: how and when, see :class:`UnitPruning` and :class:`RoundPruning`.

    Raises:
        InputError: an option is out of range, the budget cannot be met, the rounds do not fit into
            the run, or the module holds no Hugging Face model of a known family; all of it before
            the training starts.
    """

    def __init__(
        self,
        *,
        removed_macs_fraction: float,
        minimum_heads: int = 1,
        minimum_neurons: int = 8,
        multiple: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(
            budget=Budget(removed_macs_fraction=removed_macs_fraction),
            minimums={
                "heads": LayerMinimum(minimum_heads),
                "neurons": LayerMinimum(minimum_neurons, multiple),
            },
            technique="structured_pruning",
            **options,
        )
        self.save_hyperparameters(logger=False)
