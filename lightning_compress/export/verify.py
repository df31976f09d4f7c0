"""Whether an exported model says what the model in PyTorch says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.export.program import Program
from lightning_compress.models.calibration import token_mask
from lightning_compress.types import Batch

LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""Between logits of a size of one; in proportion where they are larger."""


EQUAL_PREDICTIONS = {"fp32": 0.999, "fp16": 0.99}


# A number that lies between two steps may be rounded to either.
_LARGEST_IF_ROUNDED, _EQUAL_IF_ROUNDED = 0.1, 0.97


@dataclass(frozen=True)
class Agreement:
    """How far two programs agree.

    ``largest_difference`` is between logits, ``largest_logit`` their largest magnitude;
    ``equal_predictions`` is the share of examples, in a language model of tokens, with the same
    largest logit; None where there is one logit only.
    """

    examples: int
    largest_difference: float
    largest_logit: float
    equal_predictions: float | None


def agreement_of(
    program: Program,
    reference: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
) -> Agreement:
    """Compare an exported model with its reference on batches of real examples.

    Args:
        program: what was exported.
        reference: gives the logits in PyTorch of a batch.
        batches: ``input_ids`` [B, S] and ``attention_mask`` [B, S].
    """
    largest = size = 0.0
    equal, predictions = 0, 0
    for batch in batches:
        found, wanted = program(program.load(batch)), reference(batch).float()
        if wanted.dim() == 3:  # what is said at padding is of no matter
            mask = token_mask(batch)
            found, wanted = found[mask], wanted[mask]
        difference = float((found - wanted).abs().max())
        largest = max(largest, difference if difference == difference else float("inf"))
        size = max(size, float(wanted.abs().max()))
        equal += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        predictions += len(wanted)
    share = equal / predictions if wanted.shape[-1] > 1 else None
    return Agreement(sum(len(b["input_ids"]) for b in batches), largest, size, share)


def tolerance(precision: str) -> tuple[float, float]:
    """The largest difference, between logits of a size of one, and the share of equal ones."""
    return (
        LARGEST_DIFFERENCE.get(precision, _LARGEST_IF_ROUNDED),
        EQUAL_PREDICTIONS.get(precision, _EQUAL_IF_ROUNDED),
    )


def require_within_tolerance(agreement: Agreement, precision: str) -> None:
    """See that an exported model agrees with its reference as far as its precision lets it.

    Raises:
        InputError: it does not; the message gives the figures and the bound.
    """
    largest, equal = tolerance(precision)
    allowed = largest * max(1.0, agreement.largest_logit)
    found = agreement.equal_predictions
    if agreement.largest_difference > allowed or (found is not None and found < equal):
        raise InputError(
            f"the exported model does not say what PyTorch says on {agreement.examples} examples: "
            f"logits differ by up to {agreement.largest_difference:.2g} (at most {allowed:.2g})"
            + ("" if found is None else f", {found:.2%} of the predictions are equal")
            + f" (at least {equal:.1%}): nothing was written"
        )
