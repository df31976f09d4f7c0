"""Models with random weights, batches and calibration sets for the tests of pruning."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_compress.models import units_of
from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units

from ..families import randomize_, tiny_model

LENGTHS = ([4, 9, 6], [7, 3, 9, 5])  # of the examples of two batches


@pytest.fixture
def randomized_model() -> Callable[[str], PreTrainedModel]:
    """Builds a tiny model in float64 whose weights are as large as after training."""
    return lambda family: randomize_(tiny_model(family)).double()


def padded_batch(lengths: Sequence[int]) -> dict[str, Tensor]:
    """Random tokens, padded to 9, without labels; the same for the same number of examples."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(2, 100, (len(lengths), 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def padded_batches() -> list[dict[str, Tensor]]:
    """Two batches of :data:`LENGTHS`."""
    return [padded_batch(lengths) for lengths in LENGTHS]


def calibration_of(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Calibration:
    """A calibration set of these batches, with the model's own loss."""
    return Calibration(
        batches, lambda batch: model(**batch).loss, lambda batch: model(**batch).logits
    )


def all_units(model: nn.Module) -> list[Units]:
    """Heads, then neurons, of all layers."""
    return [*units_of(model, "heads"), *units_of(model, "neurons")]


def calibration_with_padding(model: nn.Module) -> Calibration:
    """Four batches of six examples, the first of each padded; the sum of the logits as the loss."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        ids = torch.randint(2, 100, (6, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})

    def logits(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(**batch).logits
        return found

    return Calibration(batches, lambda batch: logits(batch).sum(), logits)
