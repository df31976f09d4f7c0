"""A run that stops at any moment leaves an exact state or none, and resumes as if it went on."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.callbacks import HeadPruning
from lightning_compress.callbacks.run_safety import RunSafety
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.modules import FineTuningModule

from ..conftest import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
CONFIG: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 16, "max_position_embeddings": 32,
}  # fmt: skip
HOOKS = [
    "on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end",
]  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated twice": {"val_check_interval": 7},
    "validated seldom": {"check_val_every_n_epoch": 2},
}


class _StoppedError(RuntimeError):
    pass


class Stop(L.Callback):
    """Ends the run at the n-th call of a hook of training, or within an optimizer step."""

    def __init__(self, hook: str, count: int) -> None:
        self.left = count

        def stop(trainer: L.Trainer, *args: Any) -> None:
            self.left -= not trainer.sanity_checking
            if self.left == 0:
                raise _StoppedError

        if hook == "step":
            hook = "on_train_start"
            first = lambda trainer, _: trainer.optimizers[0].register_step_post_hook(  # noqa: E731
                lambda *_: stop(trainer)
            )
        else:
            first = stop
        setattr(self, hook, first)


def fit(folder: Path, texts: Path, *callbacks: L.Callback, **options: Any) -> Any:
    """A run's weights, optimizer, and what it has chosen as the best checkpoint."""
    torch.manual_seed(0)
    monitor = options.pop("monitor", "val_loss")
    best = ModelCheckpoint(folder / "checkpoints", monitor=monitor)
    pruning = HeadPruning(
        removed_fraction=0.5, pruning_steps=2, warmup=0.2, recovery=options.pop("recovery", 0.3)
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2, default_root_dir=folder,
        callbacks=[pruning, *callbacks, best, RunSafety()], **options.pop("run", {}),
    )  # fmt: skip
    data = TextClassificationDataModule(
        path=str(texts), tokenizer=str(texts / "tokenizer"), max_length=32, batch_size=8,
        cache_dir=str(texts / "cache"),
    )  # fmt: skip
    module = FineTuningModule(config=CONFIG, learning_rate=1e-3)
    trainer.fit(module, datamodule=data, **options)
    return {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "best": best.best_model_score,
        "batches": trainer.fit_loop.epoch_loop.batch_progress.total.ready,
    }


def assert_ends_the_same(folder: Path, texts: Path, hook: str, count: int, run: str) -> bool:
    """Whether the run stopped, and left a state to go on from."""
    whole = fit(folder / "whole", texts, run=RUNS[run])
    try:
        fit(folder / "stopped", texts, Stop(hook, count), run=RUNS[run])
    except _StoppedError:
        pass
    else:
        pytest.skip(f"{hook} is not called {count} times")
    latest = folder / "stopped" / "checkpoints" / "latest.ckpt"
    if not latest.is_file():
        return False
    resumed = fit(folder / "stopped", texts, run=RUNS[run], ckpt_path=latest, weights_only=True)
    assert_same(resumed, whole)
    return True


Place = tuple[Path, Path]


@pytest.fixture
def place(tmp_path: Path, text_files: Path) -> Place:
    return tmp_path, text_files


@pytest.mark.parametrize(
    ("hook", "count", "run", "saved"),
    [
        ("on_before_backward", 9, "plain", True),
        ("step", 9, "plain", False),
        ("on_before_backward", 10, "accumulated", False),
        ("on_validation_start", 1, "plain", False),
        ("on_validation_batch_end", 1, "validated twice", False),
    ],
)
def test_a_state_is_saved_between_steps_only(
    place: Place, hook: str, count: int, run: str, saved: bool
) -> None:
    assert assert_ends_the_same(*place, hook, count, run) is saved


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("count", [1, 2, 9, 14, 21])
@pytest.mark.parametrize("hook", [*HOOKS, "step"])
def test_stopped_anywhere(place: Place, hook: str, count: int, run: str) -> None:
    assert_ends_the_same(*place, hook, count, run)


# The pruning ends within the first epoch, which is the best one.
RISING = {"monitor": "val_rising", "recovery": 0.6}


class Worse(L.Callback):
    """Logs a metric that is the best after the first epoch."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val_rising", float(trainer.current_epoch))


def test_a_run_that_was_moved_keeps_its_best_checkpoint(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch is over when the run stops, and its folder has another name when it goes on.

    Lightning drops what a ModelCheckpoint has chosen where the names of its folders differ.
    """
    folder, texts = place
    whole = fit(folder / "whole", texts, Worse(), **RISING)
    second = Stop("on_train_batch_start", whole["batches"] // 2 + 2)
    with pytest.raises(_StoppedError):
        fit(folder / "stopped", texts, Worse(), second, **RISING)
    (folder / "stopped").rename(folder / "moved")
    monkeypatch.chdir(folder)
    latest = Path("moved") / "checkpoints" / "latest.ckpt"
    resumed = fit(Path("moved"), texts, Worse(), **RISING, ckpt_path=latest, weights_only=True)
    assert whole["best"] == 0
    assert_same(resumed, whole)
