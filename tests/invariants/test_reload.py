"""A compressed model loads equal: from a checkpoint, a folder, and without this package."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_compress import load_compressed, save_compressed
from lightning_compress.models import manifest_of, masks_of

from ..conftest import ToyData
from .techniques import EPOCHS, NAMES, TECHNIQUES

IDS = torch.arange(2, 26).reshape(3, 8)
WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["lightning_compress"] = None  # importing it raises an error
import torch
from transformers import AutoModelForSequenceClassification
for folder in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        torch.save(model(input_ids=torch.load(sys.argv[1])).logits, folder + ".pt")
"""


def logits(model: Any) -> Tensor:
    """The logits of a fixed batch, [3, C]."""
    with torch.inference_mode():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.fixture
def compressed(
    trained: Path, toy_data: ToyData, quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> Callable[[str], Any]:
    """Trains and compresses with a technique, and leaves ``NAME.ckpt`` of the end of the run."""

    def run(name: str) -> Any:
        technique = TECHNIQUES[name]
        module = technique.build(trained)
        trainer = quiet_trainer(max_epochs=EPOCHS, callbacks=technique.callbacks())
        trainer.fit(module, toy_data)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        return module

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_alone_rebuilds_the_model(
    name: str, compressed: Callable[[str], Any], tmp_path: Path
) -> None:
    module = compressed(name)
    loaded: Any = type(module).load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
    assert torch.equal(logits(loaded.model), logits(module.model))
    assert manifest_of(loaded.model) == manifest_of(module.model) != []


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_loads_equal(
    name: str, compressed: Callable[[str], Any], tmp_path: Path
) -> None:
    model = compressed(name).model
    loaded = load_compressed(save_compressed(model, tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(model))
    assert manifest_of(loaded) == manifest_of(model) != []
    masks = masks_of(loaded)
    assert masks.keys() == masks_of(model).keys()
    assert all(torch.equal(mask, masks[key]) for key, mask in masks_of(model).items())


@pytest.mark.slow
def test_transformers_alone_loads_every_folder_equal(
    compressed: Callable[[str], Any], tmp_path: Path
) -> None:
    models = {name: compressed(name).model for name in TECHNIQUES}
    folders = {name: save_compressed(model, tmp_path / name) for name, model in models.items()}
    torch.save(IDS, tmp_path / "ids.pt")
    subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PACKAGE, tmp_path / "ids.pt", *folders.values()],
        check=True, timeout=300, env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    for name, model in models.items():
        assert torch.equal(torch.load(f"{folders[name]}.pt"), logits(model)), name
