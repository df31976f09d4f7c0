"""The run of a callback: decisions of several processes, its folder and its dense model."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_compress.callbacks import CompressionBenchmark, IterativeMagnitudePruning
from lightning_compress.callbacks.run import UNNAMED, dense_models, require_agreement, run_folder
from lightning_compress.saving import load_compressed

WEIGHT = "bert.encoder.layer.0.intermediate.dense.weight"

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


class Theirs(L.LightningModule):
    """Somebody's module around a Hugging Face model."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder.train()

    def training_step(self, batch, batch_idx):
        return self.encoder(**batch).loss

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Edit(L.Callback):
    """Keeps the dense model, then edits it; as a technique does after so many steps."""

    def __init__(self, step=0):
        self.step: int = step

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            dense_models.save(trainer, pl_module)
            with torch.no_grad():
                weight(pl_module.encoder).zero_()


def weight(model):
    return dict(model.named_parameters())[WEIGHT]


def dense_weight(folder):
    return weight(load_compressed(folder / "dense"))


def batches():
    """One batch, so that every step ends an epoch."""
    rows = [{"input_ids": torch.full((6,), 5 + n), "labels": torch.tensor(n % 2)} for n in range(8)]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]  # a list is a data set


@pytest.fixture
def model(tiny_model):
    """Builds a tiny BERT whose weights tell which one it is."""

    def build(value):
        bert = tiny_model("bert")
        with torch.no_grad():
            weight(bert).fill_(value)
        return bert

    return build


def fit(trainer, bert, **options):
    trainer.fit(Theirs(bert), batches(), **options)
    return bert


def test_a_run_without_a_folder_does_not_write_to_the_working_directory(
    model, quiet_trainer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer(max_steps=1, default_root_dir=None, callbacks=[Edit()])
    fit(trainer, model(1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert (dense_weight(UNNAMED) == 1).all()


def test_the_dense_model_of_an_earlier_run_is_replaced(model, quiet_trainer, tmp_path):
    for value in (1.0, 2.0):
        fit(quiet_trainer(max_steps=1, callbacks=[Edit()]), model(value))
        assert (dense_weight(tmp_path) == value).all()


def test_the_first_edit_of_a_run_decides(model, quiet_trainer, tmp_path):
    fit(quiet_trainer(max_steps=3, callbacks=[Edit(), Edit(step=1)]), model(3.0))
    assert (dense_weight(tmp_path) == 3).all()


def test_a_resumed_run_keeps_its_dense_model(model, quiet_trainer, tmp_path):
    trainer = quiet_trainer(max_steps=1, callbacks=[Edit()])
    fit(trainer, model(4.0))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    # In a new process the model is another object, and a second technique has its first edit.
    resumed = quiet_trainer(max_steps=2, callbacks=[Edit(step=1)])
    fit(resumed, model(0.0), ckpt_path=tmp_path / "a.ckpt")
    assert (dense_weight(tmp_path) == 4).all()


def test_a_dev_run_writes_nothing(model, quiet_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer(fast_dev_run=True, default_root_dir=None, callbacks=[Edit()])
    fit(trainer, model(1.0))
    assert not list(tmp_path.iterdir())


def compared(trainer, module, **options):
    """The models that the benchmark would measure after a test."""
    trainer.test(module, batches(), verbose=False, **options)
    (benchmark,) = (c for c in trainer.callbacks if isinstance(c, CompressionBenchmark))
    return benchmark._models(module.encoder, run_folder(trainer))


@pytest.fixture
def measured(monkeypatch):
    """The benchmark without its clock."""
    monkeypatch.setattr(CompressionBenchmark, "on_test_end", lambda *_: None)
    return CompressionBenchmark


def test_the_benchmark_compares_with_this_runs_dense_model_alone(
    model, quiet_trainer, tmp_path, measured, caplog
):
    def pruning():
        return IterativeMagnitudePruning(sparsity=0.5, schedule="one_shot", warmup=0.0)

    for value in (1.0, 2.0):
        trainer = quiet_trainer(max_steps=1, callbacks=[pruning(), measured()])
        module = Theirs(model(value))
        trainer.fit(module, batches())
        assert (weight(compared(trainer, module)["dense"]) == value).all()
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    resumed = quiet_trainer(max_steps=2, callbacks=[pruning(), measured()])
    module = Theirs(model(0.0))
    resumed.fit(module, batches(), ckpt_path=tmp_path / "a.ckpt")
    assert (weight(compared(resumed, module)["dense"]) == 2).all()

    # A test alone cannot know, and names the model it compares with.
    caplog.clear()
    tested = quiet_trainer(callbacks=[pruning(), measured()])
    both = compared(tested, Theirs(model(0.0)), ckpt_path=tmp_path / "a.ckpt")
    assert (weight(both["dense"]) == 2).all()
    assert "from an earlier run" in caplog.text

    # A run that starts from a compressed model and edits nothing has no dense one.
    further = quiet_trainer(max_steps=1, callbacks=[measured()])
    pruned = Theirs(both["compressed"])
    further.fit(pruned, batches())
    assert list(compared(further, pruned)) == ["compressed"]
    assert "There is no dense model" in caplog.text
