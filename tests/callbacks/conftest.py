"""LightningModules of other people, data with a position to resume from, reports of runs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_compress.callbacks import CompressionBenchmark
from lightning_compress.models import manifest_of

from ..families import tiny_options

BATCHES = 8
CONFIG = tiny_options("bert", num_hidden_layers=4, max_position_embeddings=16)


class PlainModule(L.LightningModule):
    """A small network without any Hugging Face model; 416 weights in ``net.*.weight``."""

    def __init__(
        self, optimizer: str = "AdamW", schedule: str | None = None, **options: float
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
        )
        self.optimizer, self.schedule = optimizer, schedule
        self.options: dict[str, Any] = {"lr": 0.05, **options}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), **self.options)
        if self.schedule is None:
            return optimizer
        if self.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            config = {"scheduler": plateau, "interval": "step", "monitor": "loss"}
        else:
            falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
            config = {"scheduler": falling, "interval": self.schedule}
        return {"optimizer": optimizer, "lr_scheduler": config}


class JudgedModule(PlainModule):
    """The same with a validation by which it gets worse and worse."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", -float(self.global_step))


class Foreign(L.LightningModule):
    """Somebody's own module, with the model under another name and without any hook of ours."""

    def __init__(self, seed: int = 0, **changes: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        # No dropout: Lightning does not bring random numbers back on resume.
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = AutoConfig.for_model(**{**CONFIG, **dropout, **changes})
        self.net = AutoModelForSequenceClassification.from_config(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch["input_ids"], labels=batch["labels"]).loss
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("score", -float(self.global_step))  # worse and worse

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test", self.net(batch["input_ids"], labels=batch["labels"]).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit_and_report(
    module: L.LightningModule, callback: L.Callback, data: Any, trainer_of: Callable[..., L.Trainer]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fits, tests and measures; gives the report's rows of the dense and the smaller model."""
    measure = CompressionBenchmark(runtimes=["eager"], precisions=["fp32"], seconds=0.01)
    trainer = trainer_of(max_epochs=2, callbacks=[callback, measure])
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    report = json.loads((Path(trainer.default_root_dir) / "report.json").read_text())
    dense, small = report["rows"]
    assert (dense["model"], small["model"]) == ("dense", "compressed")
    assert small["note"] is None
    for field in ("parameters", "macs", "size_bytes"):
        assert small[field] < dense[field]
    return dense, small


def model_of(module: Any) -> Any:
    """The model of a foreign module or of one of ours."""
    return module.net if isinstance(module, Foreign) else module.model


def state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What a resumed run has to end with like the uninterrupted one."""
    return {
        "weights": module.state_dict(),
        "moments": trainer.optimizers[0].state_dict()["state"],
        "manifest": manifest_of(model_of(module)),
    }


class ResumableLoader:
    """Eight batches of four examples, the same in every epoch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.batches = [
            [torch.randn(4, 8, generator=generator), torch.randn(4, 2, generator=generator)]
            for _ in range(BATCHES)
        ]
        self.start = self.given = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[Tensor]]:
        start, self.start = self.start, 0
        for index in range(start, BATCHES):
            self.given = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"] % BATCHES


@pytest.fixture
def plain_module() -> Callable[..., PlainModule]:
    """Builds the plain module, with the same weights every time."""

    def build(*args: Any, seed: int = 0, judged: bool = False, **options: Any) -> PlainModule:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return (JudgedModule if judged else PlainModule)(*args, **options)

    return build


@pytest.fixture
def loader() -> Callable[[], ResumableLoader]:
    """Builds the loader of eight batches."""
    return ResumableLoader


def two_processes(folder: str, **options: Any) -> L.Trainer:
    """A Trainer for the script of a test; it writes no files of its own."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return L.Trainer(**quiet | options)


class SameEverywhere(L.Callback):
    """Sees to it that the parameters are equal on both of two processes after every step."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        both = trainer.strategy.all_gather(mine)
        assert torch.equal(both[0], both[1]), trainer.global_step
