"""When to remove attention heads."""

from lightning_compress.pruning.schedule import Unit
from lightning_compress.pruning.unit_amount import amount_of
from lightning_compress.pruning.unit_choice import Limits
from lightning_compress.pruning.unit_scores import UnitScore

from .unit_pruning import UnitPruning


class HeadPruning(UnitPruning):
    """Remove attention heads from any LightningModule's Hugging Face model while it trains.

    The heads leave the model: it gets smaller and faster. With grouped-query attention a head is a
    key-value head with the query heads that share it.

    Args:
        share: fraction of all heads that leaves, over all layers together.
        count: or how many heads leave.
        minimum: how many heads every layer keeps at least.
        rounds: in how many rounds, evenly spread over the run between warm-up and recovery, each
            of which removes the same amount; with one, it is right after the warm-up.
        warmup: length of the dense phase; default: a tenth of the run.
        recovery: length of the phase at the end without removals; default: three tenths of the
            run. With one round it is what is left of the run.
        unit: what these two lengths are given in: ``run`` (fractions of the run), ``epochs``
            (fractions of one too) or ``steps`` (optimizer steps).
        score: by which the least important go: ``fisher`` or ``taylor`` (the loss's dependence on
            each, squared or absolute), ``activation`` (how much what they say varies, and how far
            it reaches), ``magnitude`` (their weights) or ``random`` (what the others have to beat).
        calibration_examples: how many training examples a round looks at to score.
        refit: fit the outgoing weights of what remains, by least squares, to what all said before.
            Otherwise the mean of what is removed goes into the bias.

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
        rounds: int = 5,
        warmup: float | None = None,
        recovery: float | None = None,
        unit: Unit = "run",
        score: UnitScore = "fisher",
        calibration_examples: int = 512,
        refit: bool = False,
    ) -> None:
        super().__init__(
            amount=amount_of(share=share, count=count),
            limits={"heads": Limits(minimum)},
            technique="head_pruning",
            score=score,
            refit=refit,
            rounds=rounds,
            warmup=warmup,
            recovery=recovery,
            unit=unit,
            calibration_examples=calibration_examples,
        )
        self.save_hyperparameters(logger=False)
