"""Saved models, loaded elsewhere: with this package and without it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lightning_compress.saving import save_compressed

IDS = torch.arange(2, 26).reshape(3, 8)
OURS = """
import sys, torch
from lightning_compress.saving import load_compressed
ids = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    with torch.inference_mode():
        torch.save(load_compressed(folder)(input_ids=ids).logits, folder + ".ours")
"""
WITHOUT_US = """
import sys
sys.modules["lightning_compress"] = None  # whoever imports it gets an error
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
ids = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    language = folder.removesuffix("-again").endswith("-lm")
    auto = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        torch.save(model(input_ids=ids).logits, folder + ".alone")
    model.save_pretrained(folder + "-again")
"""


def padded_batch(rows=3, tokens=9):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 100, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, **inputs):
    with torch.inference_mode():
        return model(**(inputs or padded_batch())).logits


@pytest.fixture
def assert_same_elsewhere(tmp_path: Path) -> Callable[[dict[str, PreTrainedModel]], None]:
    """Saves models by name (``-lm``: language models) and looks at what they say elsewhere.

    In a new process with this package, in one without it, and when saved again by the latter.
    """

    def in_a_new_process(script: str, folders: list[Path]) -> None:
        options = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "ids.pt"), *map(str, folders)],
            check=True, timeout=300, env={**os.environ, **options},
        )  # fmt: skip

    def check(models: dict[str, PreTrainedModel]) -> None:
        folders = [save_compressed(model, tmp_path / name) for name, model in models.items()]
        torch.save(IDS, tmp_path / "ids.pt")
        in_a_new_process(OURS, folders)
        in_a_new_process(WITHOUT_US, folders)
        in_a_new_process(WITHOUT_US, [tmp_path / f"{name}-again" for name in models])
        for name, model in models.items():
            with torch.inference_mode():
                said = model(input_ids=IDS).logits
            for file in (f"{name}.ours", f"{name}.alone", f"{name}-again.alone"):
                assert torch.equal(torch.load(tmp_path / file), said), file

    return check
