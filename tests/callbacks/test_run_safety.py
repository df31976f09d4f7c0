import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_compress.callbacks.run_safety import RunSafety, check_writable
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.modules import FineTuningModule, NonFiniteLossError

CONFIG = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal():
    """Tests that run in the background start with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressCtrlC(L.Callback):
    """Sends this process what Ctrl-C sends, in the middle of a batch of the training."""

    def __init__(self, batch, times=1):
        self.batch: int = batch
        self.times: int = times
        self.finished = False

    def on_before_optimizer_step(self, trainer, *args):
        if trainer.global_step == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.finished = trainer.global_step > self.batch


def data(folder):
    return TextClassificationDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=32, batch_size=8,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


def test_ctrl_c_ends_the_batch_and_the_resumed_run_equals_the_uninterrupted(
    text_files, quiet_trainer, tmp_path, caplog
):
    torch.manual_seed(0)
    whole = FineTuningModule(config=CONFIG)
    quiet_trainer(max_epochs=2).fit(whole, data(text_files))

    torch.manual_seed(0)
    press = PressCtrlC(batch=5)
    trainer = quiet_trainer(max_epochs=2, callbacks=[press, RunSafety()])
    with pytest.raises(SystemExit):
        trainer.fit(FineTuningModule(config=CONFIG), data(text_files))
    assert press.finished
    assert trainer.global_step == 6
    checkpoint = tmp_path / "checkpoints" / "latest.ckpt"
    output = caplog.text
    assert "Stopping after this batch" in output
    assert f"ckpt_path='{checkpoint}'" in output
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = FineTuningModule(config=CONFIG)
    quiet_trainer(max_epochs=2).fit(resumed, data(text_files), ckpt_path=checkpoint)
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_run_in_the_background_ignores_ctrl_c(text_files, quiet_trainer):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = quiet_trainer(max_steps=4, callbacks=[PressCtrlC(batch=2), RunSafety()])
    trainer.fit(FineTuningModule(config=CONFIG), data(text_files))
    assert trainer.global_step == 4
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_second_ctrl_c_does_not_wait(text_files, quiet_trainer):
    press = PressCtrlC(batch=2, times=2)
    trainer = quiet_trainer(max_epochs=1, callbacks=[press, RunSafety()])
    with pytest.raises(SystemExit):
        trainer.fit(FineTuningModule(config=CONFIG), data(text_files))
    assert not press.finished


def test_a_loss_that_is_not_a_number_saves_the_last_good_state(text_files, quiet_trainer, tmp_path):
    class Overflowing(FineTuningModule):
        def forward(self, batch):
            logits = super().forward(batch)
            return logits * torch.nan if self.training and self.global_step == 4 else logits

    trainer = quiet_trainer(max_epochs=1, callbacks=[RunSafety()])
    with pytest.raises(NonFiniteLossError, match="step 4"):
        trainer.fit(Overflowing(config=CONFIG), data(text_files))
    state = torch.load(tmp_path / "checkpoints" / "latest.ckpt")
    assert state["global_step"] == 4
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_full_disk_and_a_folder_that_cannot_be_written_stop_before_training(
    text_files, quiet_trainer, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    blocked = quiet_trainer(
        max_epochs=1, callbacks=[RunSafety()], default_root_dir=tmp_path / "file" / "run"
    )
    with pytest.raises(InputError, match=r"cannot be written.*trainer\.logger"):
        blocked.fit(FineTuningModule(config=CONFIG), data(text_files))
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    full = quiet_trainer(max_epochs=1, callbacks=[RunSafety()])
    with pytest.raises(InputError, match=r"0 MB free.*free disk space"):
        full.fit(FineTuningModule(config=CONFIG), data(text_files))
    assert full.global_step == 0


def test_processes_that_look_at_a_folder_at_once_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [tmp_path / "run"] * 400))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("callback", [ModelCheckpoint, EarlyStopping])
def test_a_monitor_that_nothing_logs_is_refused_before_training(
    text_files, quiet_trainer, tmp_path, callback
):
    def trainer(monitor):
        options = {"dirpath": tmp_path / monitor} if callback is ModelCheckpoint else {}
        return quiet_trainer(
            max_epochs=1,
            callbacks=[callback(monitor=monitor, **options), RunSafety()],
            default_root_dir=tmp_path,
            enable_checkpointing=callback is ModelCheckpoint,
        )

    module = FineTuningModule(config=CONFIG)
    wrong = trainer("val_acc")
    with pytest.raises(InputError, match=r"monitor is val_acc, which nothing logs.*val_accuracy"):
        wrong.fit(module, datamodule=data(text_files))
    assert wrong.global_step == 0
    right = trainer("val_accuracy")
    right.fit(FineTuningModule(config=CONFIG), datamodule=data(text_files))
    assert right.global_step > 0


def test_the_latest_state_is_saved_after_an_epoch_and_in_time(
    text_files, quiet_trainer, tmp_path, monkeypatch
):
    saved = []
    save = L.Trainer.save_checkpoint

    def watched(trainer, path, *args, **options):
        saved.append(trainer.global_step)
        save(trainer, path, *args, **options)

    clock = [0.0]
    monkeypatch.setattr(L.Trainer, "save_checkpoint", watched)
    monkeypatch.setattr("lightning_compress.callbacks.run_safety.time.monotonic", lambda: clock[0])

    class Minutes(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            clock[0] += 61 if trainer.global_step in (4, 5) else 0.001

    trainer = quiet_trainer(max_epochs=3, callbacks=[Minutes(), RunSafety()])
    trainer.fit(FineTuningModule(config=CONFIG), data(text_files))
    each = trainer.num_training_batches
    assert saved == [5, 6, each + 1, 2 * each + 1, 3 * each]


def test_saving_takes_a_small_share_of_the_time(text_files, quiet_trainer, monkeypatch):
    saved, clock = [], [0.0]

    def slow(trainer, *args, **options):
        saved.append(trainer.global_step)
        clock[0] += 100

    monkeypatch.setattr(L.Trainer, "save_checkpoint", slow)
    monkeypatch.setattr("lightning_compress.callbacks.run_safety.time.monotonic", lambda: clock[0])

    class Time(L.Callback):
        def on_train_batch_start(self, *_):
            clock[0] += 60.1

    trainer = quiet_trainer(max_epochs=12, callbacks=[Time(), RunSafety()])
    trainer.fit(FineTuningModule(config=CONFIG), data(text_files))
    *kept, _ = saved
    assert kept[0] == 1
    assert all(after - before > 5000 / 61 for before, after in pairwise(kept))
    assert len(kept) > 1
