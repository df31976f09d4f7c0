"""Models of several layers with large random weights, calibration texts, staged substitutions."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.substitution.edit import insert_switches_, switches_of

from ..families import randomize_

LENGTHS = [[4, 9, 6], [7, 3, 9, 5]]


@pytest.fixture
def deep(tiny_model) -> Callable[..., PreTrainedModel]:
    """Builds a model of a family with so many layers, in float64."""

    def build(family: str = "bert", layers: int = 5, **changes: Any) -> PreTrainedModel:
        model: PreTrainedModel = tiny_model(family, num_hidden_layers=layers, **changes)
        randomize_(model, low=0, high=0.3)
        return model.double()

    return build


def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches of padded texts."""
    found = []
    for lengths in LENGTHS:
        generator = torch.Generator().manual_seed(len(lengths))
        ids = torch.randint(2, 100, (len(lengths), 9), generator=generator)
        mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask})
    return found


@pytest.fixture
def calibration_for() -> Callable[[PreTrainedModel], Calibration]:
    """Builds the calibration of a model: two batches of padded texts."""

    def build(model: PreTrainedModel) -> Calibration:
        return Calibration(
            batches(),
            lambda batch: model(**batch).loss,
            lambda batch: model(**batch).logits,
        )

    return build


@dataclass
class StagedSubstitution:
    """A dense model, a copy with switches at layers 1 and 2 to 3, and calibration texts."""

    dense: PreTrainedModel
    model: PreTrainedModel
    switches: list[ReplacementSwitch]
    calibration: Calibration
    family: str


@pytest.fixture
def staged_substitution(deep, calibration_for) -> Callable[..., StagedSubstitution]:
    """Builds a staged substitution with seeded random compact blocks."""

    def build(
        family: str = "bert",
        groups: tuple[tuple[int, ...], ...] = ((1,), (2, 3)),
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        options: dict[str, int] | None = None,
        **changes: Any,
    ) -> StagedSubstitution:
        dense = deep(family, **changes)
        for weight in dense.parameters():
            weight.data = weight.data.to(dtype)
        model = copy.deepcopy(dense)
        shape: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, **(options or {})}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            insert_switches_(model, groups, technique="test", **shape)
        return StagedSubstitution(dense, model, switches_of(model), calibration_for(model), family)

    return build
