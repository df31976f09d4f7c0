"""Two real processes: each its share, together every example, also after a resume."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from lightning_compress.data import TextClassificationDataModule

from .conftest import words

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
    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == STEPS
        return torch.optim.SGD(self.parameters(), lr=0.1)

def trainer():
    return L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint("checkpoints", filename="{step}", every_n_train_steps=3,
                                   save_top_k=-1)],
    )

def main(options):
    whole, resumed = Recorder(), Recorder()
    data = TextClassificationDataModule(**options)
    trainer().fit(whole, datamodule=data)
    trainer().test(whole, datamodule=data, verbose=False)
    last = trainer()
    last.fit(resumed, datamodule=data, ckpt_path="checkpoints/step=3.ckpt")
    report = {"whole": whole.seen, "resumed": resumed.seen}
    Path(f"rank{last.global_rank}.json").write_text(json.dumps(report))

if __name__ == "__main__":
    STEPS = int(sys.argv[3])
    main(json.loads(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train_on", "steps", "trained"), [("labelled", 7, 54), ("both", 11, 54 + 31)]
)
def test_two_processes(
    classification: Callable[..., TextClassificationDataModule],
    write_rows: Callable[..., Path],
    run_script: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_on: str,
    steps: int,
    trained: int,
) -> None:
    write_rows(words(91)[60:], [None] * 31, "unlabelled.jsonl")
    data = classification(train_on=train_on)
    options = {name: value for name, value in data.hparams.items() if name != "_instantiator"}
    monkeypatch.chdir(tmp_path)  # where the script leaves its files
    run_script(SCRIPT, json.dumps(options), 2 * steps)
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    first, second = (report["whole"] for report in reports)
    for stage, count, times in (("val", 6, 2), ("test", 20, 1)):
        shares = [list(chain(*report[stage])) for report in (first, second)]
        assert len(shares[0]) == len(shares[1]) == count * times / 2
        assert len(set(chain(*shares))) == count
    assert len(first["train"]) == len(second["train"]) == 2 * steps
    epochs = [[*first["train"][e : e + steps], *second["train"][e : e + steps]] for e in (0, steps)]
    assert sorted(chain(*epochs[0])) == sorted(chain(*epochs[1]))
    assert len(set(chain(*epochs[0]))) == sum(map(len, epochs[0])) == trained
    assert epochs[0] != epochs[1]
    for report in reports:
        assert report["resumed"]["train"] == report["whole"]["train"][3:]
