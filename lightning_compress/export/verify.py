"""Compare an exported model with the model in PyTorch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.export.format import Program
from lightning_compress.models.calibration import token_mask
from lightning_compress.quantization.precisions import PRECISIONS
from lightning_compress.types import Batch, main_input


@dataclass(frozen=True)
class Agreement:
    """How closely two programs match.

    Attributes:
        examples: number of examples compared.
        largest_difference: largest absolute difference between logits; infinite if one of them
            is not finite, in both programs too.
        largest_logit: largest magnitude of the reference's logits.
        equal_predictions: fraction of examples (tokens, for a language model) with the same largest
            logit, or with the same labels; None where predictions are numbers.
    """

    examples: int
    largest_difference: float
    largest_logit: float
    equal_predictions: float | None


def agreement_of(
    program: Program,
    reference: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    *,
    several_labels: bool = False,
    over_positions: bool = False,
    numbers: bool = False,
) -> Agreement:
    """Compare an exported model with its reference on batches of real examples.

    Args:
        program: the exported model.
        reference: the model in PyTorch: a batch to logits [B, C] or [B, S, V].
        batches: ``input_ids`` [B, S] and ``attention_mask`` [B, S], or ``pixel_values``; padding
            is not compared.
        several_labels: an example has each label whose logit is positive, and not one class.
        over_positions: a prediction is the position with the largest of [B, S, C] logits.
        numbers: the logits are numbers, of a regression or an embedding, and no predictions.
    """
    largest = size = 0.0
    equal, predictions = 0, 0
    for batch in batches:
        found, expected = program(program.load(batch)), reference(batch).float()
        if over_positions:
            outside = ~token_mask(batch).unsqueeze(-1)
            places = [one.masked_fill(outside, -math.inf).argmax(1) for one in (found, expected)]
            equal += int((places[0] == places[1]).sum())
            predictions += places[0].numel()
        if expected.dim() == 3:
            mask = token_mask(batch)
            found, expected = found[mask], expected[mask]
        finite = bool(found.isfinite().all() and expected.isfinite().all())
        difference = float((found - expected).abs().max()) if finite else math.inf
        largest = max(largest, difference)
        size = max(size, float(expected.abs().max()))
        if over_positions:
            continue
        if several_labels:
            equal += int(((found > 0) == (expected > 0)).all(-1).sum())
        else:
            equal += int((found.argmax(-1) == expected.argmax(-1)).sum())
        predictions += len(expected)
    discrete = several_labels or (expected.shape[-1] > 1 and not numbers)
    fraction = equal / predictions if discrete else None
    return Agreement(sum(len(main_input(b)) for b in batches), largest, size, fraction)


def require_within_tolerance(agreement: Agreement, precision: str) -> None:
    """Check that an exported model matches its reference within the precision's tolerance.

    Raises:
        InputError: it does not; the message gives the differences and the tolerance.
    """
    tolerance = PRECISIONS[precision].tolerance
    allowed = tolerance.max_difference * max(1.0, agreement.largest_logit)
    found = agreement.equal_predictions
    too_few_equal = found is not None and found < tolerance.min_equal
    if math.isinf(agreement.largest_difference):
        raise InputError(
            f"outputs are not finite (NaN or infinite) in {precision}, those of the exported "
            "model or PyTorch's: nothing was written; choose another precision"
        )
    if agreement.largest_difference > allowed or too_few_equal:
        raise InputError(
            f"the exported model's outputs differ from PyTorch's on {agreement.examples} examples: "
            f"logits differ by up to {agreement.largest_difference:.2g} (at most {allowed:.2g})"
            + ("" if found is None else f", {found:.2%} of the predictions are equal")
            + f" (at least {tolerance.min_equal:.1%}): nothing was written"
        )


def verdict(agreement: Agreement, precision: str) -> str:
    """The result of the comparison as two sentences."""
    tolerance = PRECISIONS[precision].tolerance
    words = (
        f"On {agreement.examples} examples the logits differ from PyTorch's by at most "
        f"{agreement.largest_difference:.2g} (the largest is {agreement.largest_logit:.3g})"
    )
    if agreement.equal_predictions is not None:
        words += f", and {agreement.equal_predictions:.2%} of the predictions are equal"
    return (
        f"{words}. Tolerance: a difference of {tolerance.max_difference:g}, relative to the "
        f"largest logit where that exceeds 1, and {tolerance.min_equal:.1%} of the predictions "
        "equal."
    )
