"""SIGTERM and Ctrl-C in every phase of a run: it stops soon, and what it saves is exact."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_compress.callbacks.run_safety import RunSafety
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.modules import FineTuningModule
from lightning_compress.stopping import Stopped, exit_status, stop

from ..conftest import assert_same

CONFIG: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)  # checkpoints hold options of modules
Trainers = Callable[..., L.Trainer]


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Any:
    """Tests that run in the background start with Ctrl-C ignored."""
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)  # as the command line does
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def data(folder: Path) -> TextClassificationDataModule:
    return TextClassificationDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=32, batch_size=8,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


class Module(FineTuningModule):
    """Sends itself a signal in a hook, at its n-th call, and then works on for ten seconds."""

    def __init__(self, hook: str = "", call: int = 1, number: int = TERM) -> None:
        super().__init__(config=CONFIG, learning_rate=1e-3)
        self.left = call
        inner = getattr(self, hook) if hook else None

        def stopped(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    time.sleep(0.01)
            return inner(*args, **options)  # type: ignore[misc]

        if hook:
            setattr(self, hook, stopped)


def stopped_in(hook: str, call: int, texts: Path, trainers: Trainers, number: int = TERM) -> float:
    """Fit until the signal ends it; the seconds from the start to the end of what it stopped."""
    torch.manual_seed(0)
    trainer, module = trainers(max_epochs=2, callbacks=[RunSafety()]), Module(hook, call, number)
    begun = time.monotonic()
    with pytest.raises(SystemExit) as end:
        trainer.fit(module, data(texts))
    assert module.left == 0
    assert isinstance(end.value.__context__, Stopped)
    assert exit_status(end.value.__context__) == 128 + number
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("hook", "call", "number"),
    [
        ("on_train_start", 1, TERM),
        ("training_step", 3, TERM),
        ("optimizer_step", 3, INT),
        ("on_validation_epoch_end", 2, TERM),  # the first is the sanity check's
        ("on_train_end", 1, INT),
        ("on_fit_end", 1, TERM),
    ],
)
def test_a_run_stops_soon_in_every_phase_and_its_state_is_exact(
    hook: str, call: int, number: int, text_files: Path, quiet_trainer: Trainers, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = Module()
    quiet_trainer(max_epochs=2).fit(whole, data(text_files))
    assert stopped_in(hook, call, text_files, quiet_trainer, number) < 9
    latest = tmp_path / "checkpoints" / "latest.ckpt"
    if not latest.is_file():
        assert hook in ("optimizer_step", "on_validation_epoch_end")  # no state of before is kept
        return
    resumed = Module()
    quiet_trainer(max_epochs=2).fit(resumed, data(text_files), ckpt_path=latest)
    assert_same(resumed.state_dict(), whole.state_dict())


def test_the_test_loop_stops_at_once(text_files: Path, quiet_trainer: Trainers) -> None:
    trainer, module = quiet_trainer(callbacks=[RunSafety()]), Module("test_step", 2)
    begun = time.monotonic()
    with pytest.raises(SystemExit):
        trainer.test(module, data(text_files), verbose=False)
    assert time.monotonic() - begun < 9
    assert signal.getsignal(signal.SIGTERM) is stop


def test_a_forward_pass_that_changes_a_buffer_is_not_saved_in_its_middle(
    text_files: Path, quiet_trainer: Trainers, tmp_path: Path
) -> None:
    class Counting(FineTuningModule):
        """Counts its batches in a buffer, as a batch norm does."""

        def __init__(self, fails_at: int | None) -> None:
            super().__init__(config=CONFIG, learning_rate=1e-3)
            self.register_buffer("seen", torch.zeros(()))
            self.fails_at = fails_at

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.get_buffer("seen").add_(1)
            if batch_idx == self.fails_at:
                raise RuntimeError("in the middle")
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(max_epochs=1, callbacks=[RunSafety()])
    with pytest.raises(RuntimeError, match="in the middle"):
        trainer.fit(Counting(fails_at=3), data(text_files))
    assert not (tmp_path / "checkpoints" / "latest.ckpt").exists()
