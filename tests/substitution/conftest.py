"""Models of several layers as if trained, and texts of different lengths to look at them with."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.switch import Choice
from lightning_compress.substitution.edit import choices_of, stage_substitution_

LENGTHS = [[4, 9, 6], [7, 3, 9, 5]]


def lively_(model: PreTrainedModel, seed: int = 2) -> PreTrainedModel:
    """Weights as large as after training, no two layers alike; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            size = 0.3 * torch.rand((), generator=generator)
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    model.eval()
    return model


@pytest.fixture
def deep(tiny_model) -> Callable[..., PreTrainedModel]:
    """Builds a model of a family with so many layers, in float64."""

    def build(family: str = "bert", layers: int = 5, **changes: Any) -> PreTrainedModel:
        model: PreTrainedModel = lively_(tiny_model(family, num_hidden_layers=layers, **changes))
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
def looking() -> Callable[[PreTrainedModel], Calibration]:
    """Builds the texts to look at a model with."""

    def build(model: PreTrainedModel) -> Calibration:
        return Calibration(
            batches(),
            lambda batch: model(**batch).loss,
            lambda batch: model(**batch).logits,
        )

    return build


@dataclass
class Scene:
    """A dense model, a copy whose layers 1 and 2 to 3 have compact blocks beside them, texts."""

    dense: PreTrainedModel
    model: PreTrainedModel
    choices: list[Choice]
    calibration: Calibration
    family: str


@pytest.fixture
def scene(deep, looking) -> Callable[..., Scene]:
    """Builds such a scene, of random compact blocks, the same every time."""

    def build(
        family: str = "bert",
        groups: tuple[tuple[int, ...], ...] = ((1,), (2, 3)),
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        options: dict[str, int] | None = None,
        **changes: Any,
    ) -> Scene:
        dense = deep(family, **changes)
        for weight in dense.parameters():
            weight.data = weight.data.to(dtype)
        model = copy.deepcopy(dense)
        shape: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, **(options or {})}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            stage_substitution_(model, groups, technique="test", **shape)
        return Scene(dense, model, choices_of(model), looking(model), family)

    return build
