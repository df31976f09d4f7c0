"""Two real processes: each its share, together every example, also after a resume."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.data import TextClassificationDataModule

SCRIPT = """
import json, sys
from pathlib import Path
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_compress.data import TextClassificationDataModule

class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = {"train": [], "val": [], "test": []}
    def step(self, batch, stage):
        self.seen[stage].append(batch["example_id"].tolist())
        return (self.weight * batch["labels"].float()).sum()
    def training_step(self, batch, batch_idx): return self.step(batch, "train")
    def validation_step(self, batch, batch_idx): self.step(batch, "val")
    def test_step(self, batch, batch_idx): self.step(batch, "test")
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.1)

def main(options, folder, resume):
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3,
                                   save_top_k=-1)],
    )
    data = TextClassificationDataModule(**options)
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    trainer.test(recorder, datamodule=data, verbose=False)
    report = Path(folder, f"rank{trainer.global_rank}.json")
    report.write_text(json.dumps(recorder.seen))

if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:]))
"""


def run(
    script: Path, options: dict[str, Any], folder: Path, resume: Path | None = None
) -> list[dict[str, list[list[int]]]]:
    script.write_text(SCRIPT)
    arguments = (options, str(folder), resume and str(resume))
    subprocess.run(
        [sys.executable, str(script), *map(json.dumps, arguments)],
        check=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_processes(
    classification: Callable[..., TextClassificationDataModule], tmp_path: Path
) -> None:
    data = classification()
    options = {name: value for name, value in data.hparams.items() if name != "_instantiator"}
    first, second = run(tmp_path / "main.py", options, tmp_path / "whole")
    for stage, count in (("val", 6), ("test", 20)):
        shares = [list(chain(*report[stage])) for report in (first, second)]
        assert len(shares[0]) == len(shares[1])
        expected = {"val": 2 * count, "test": count}[stage]  # validated twice
        assert len(shares[0]) + len(shares[1]) == expected
        assert len(set(chain(*shares))) == count
    epochs = [[*first["train"][e : e + 7], *second["train"][e : e + 7]] for e in (0, 7)]
    assert len(first["train"]) == len(second["train"]) == 14
    assert sorted(chain(*epochs[0])) == sorted(chain(*epochs[1]))
    assert len(set(chain(*epochs[0]))) == 54
    assert epochs[0] != epochs[1]

    checkpoint = tmp_path / "whole" / "step=3.ckpt"
    resumed = run(tmp_path / "main.py", options, tmp_path / "resumed", checkpoint)
    for before, after in zip((first, second), resumed, strict=True):
        assert after["train"] == before["train"][3:]
