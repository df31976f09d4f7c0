import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_compress.callbacks.run import require_agreement, run_folder

# Two processes train; in the second run one of them is led astray just before an update.
SCRIPT = """
import json, logging, os, sys, warnings
import lightning as L
import torch
from torch import nn
from lightning_compress.callbacks import IterativeMagnitudePruning
from lightning_compress.models import masks_of
from lightning_compress.models.masks import masks_digest
from tests.callbacks.conftest import two_processes

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

class Astray(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 5 and trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.net[0].weight[0] *= 1000

def fit(*others):
    module = Module()
    data = torch.utils.data.DataLoader(torch.randn(64, 8), 4)
    pruning = IterativeMagnitudePruning(sparsity=0.5, weights=["net.*.weight"], interval=0.2)
    trainer = two_processes(sys.argv[1], max_epochs=1, callbacks=[*others, pruning])
    error = ""
    try:
        trainer.fit(module, data)
    except RuntimeError as raised:
        error = str(raised)
    masks = masks_of(module)
    zeros = sum(int((module.get_parameter(n) == 0).sum()) for n in masks)
    return trainer.global_rank, [trainer.global_step, masks_digest(masks), zeros, error]

torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # each process has data of its own
rank, agreed = fit()
_, astray = fit(Astray())
with open(f"{sys.argv[1]}/rank{rank}.json", "w") as file:
    json.dump([agreed, astray], file)
"""


@pytest.mark.slow
def test_two_processes_prune_the_same_and_stop_if_they_would_not(run_script, tmp_path):
    run_script(SCRIPT)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    (one, one_astray), (other, other_astray) = results
    assert one == other
    steps, _, zeros, error = one
    assert (steps, zeros, error) == (8, round(0.5 * (128 + 64)), "")
    for astray in (one_astray, other_astray):
        assert astray[0] == 5
        assert "at step 5 the processes disagree on which weights to prune" in astray[3]


def trainer_of(decisions):
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), all_gather=lambda mine: torch.tensor(decisions)
    )
    return SimpleNamespace(world_size=len(decisions), strategy=strategy, global_step=7)


def test_equal_decisions_pass_and_different_ones_stop():
    require_agreement(trainer_of([2**62, 2**62, 2**62]), 2**62, "anything")
    require_agreement(SimpleNamespace(world_size=1), 5, "anything")
    with pytest.raises(RuntimeError, match="step 7 the processes disagree on the heads"):
        require_agreement(trainer_of([5, 5, 6]), 5, "the heads")


class OtherLogger(Logger):
    """A logger that is neither TensorBoard's nor a CSV file."""

    save_dir = "runs"
    name = "project"
    version = "x7"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, *args, **kwargs):
        pass


def test_every_logger_has_its_folder(quiet_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for logger, root, folder in (
        (TensorBoardLogger("logs", "a"), None, Path("logs/a/version_0")),
        (CSVLogger("logs", "b"), None, Path("logs/b/version_0")),
        (OtherLogger(), None, Path("runs/project/x7")),
        (False, tmp_path / "own", tmp_path / "own"),
    ):
        assert run_folder(quiet_trainer(logger=logger, default_root_dir=root)) == folder
