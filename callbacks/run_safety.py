"""Safety of a run: disk space is checked first, and Ctrl-C or an error leaves a checkpoint."""

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.errors import InputError

from .run import callbacks_of, is_dev_run, run_folder

CHECKPOINT = "interrupted.ckpt"
_BYTES_A_PARAMETER = 12  # float32 weight and the two moments of Adam
_FILES = 4  # best and last checkpoint, the one on interruption, and the model folders together


class RunSafety(L.Callback):
    """Check the disk space of a run, and leave a checkpoint whenever a fit ends early.

    The first Ctrl-C stops the run at the end of the batch, so that a run resumed from the
    checkpoint is equal to an uninterrupted one; a second one stops it at once. After an error,
    such as a loss that is not finite, the checkpoint holds the state before the failing batch.
    Has no options. ``lightning-compress fit`` adds it to every run.

    Must be the last callback, so that the others have handled the batch when it stops the run.

    Raises:
        InputError: at the start of ``fit``; the run's folder cannot be written or the disk is full.

    Example::

        trainer = L.Trainer(callbacks=[HeadPruning(removed_fraction=0.5), RunSafety()])
    """

    def __init__(self) -> None:
        self._asked_to_stop = False
        self._training = False
        self._handler: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the run's folder and the free disk space, except in a dev run."""
        if is_dev_run(trainer):
            return
        folder = run_folder(trainer)
        check_writable(folder)
        needed = _FILES * _BYTES_A_PARAMETER * sum(p.numel() for p in pl_module.parameters())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputError(
                f"the disk of {folder} has {free / 1e6:,.0f} MB free and the run writes up to "
                f"{needed / 1e6:,.0f} MB: free disk space, or choose another "
                "folder with trainer.logger.init_args.save_dir"
            )

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that what checkpoints and early stopping go by is logged.

        Raises:
            InputError: a validation metric that a callback monitors is not.
        """
        later = set(getattr(pl_module, "later_metrics", ()))
        known = sorted(trainer.callback_metrics.keys() | later)
        for callback in callbacks_of(trainer):
            monitor = str(getattr(callback, "monitor", None))
            if monitor.startswith("val_") and monitor not in known:
                name = type(callback).__name__
                raise InputError(
                    f"{name}.monitor is {monitor}, which nothing logs: validation logs "
                    f"{', '.join(known)}; name one of these"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle Ctrl-C until the training ends."""
        self._training, self._asked_to_stop = True, False
        # In the background, where the shell ignores Ctrl-C for the run, it stays ignored.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._handler = signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True
        rank_zero_info("\nStopping after this batch; press Ctrl-C again to stop at once.")

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop if Ctrl-C was pressed during the batch."""
        if self._asked_to_stop:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, *args: Any) -> None:
        """Stop if Ctrl-C was pressed: validation does not change the training state."""
        if self._asked_to_stop:
            raise KeyboardInterrupt

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint, and print the command that resumes from it."""
        refused = isinstance(exception, InputError) and trainer.global_step == 0
        if self._training and not refused and not is_dev_run(trainer):
            _leave_checkpoint(trainer)
        self._release()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handler of Ctrl-C."""
        self._release()

    def _release(self) -> None:
        self._training = False
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


def _leave_checkpoint(trainer: L.Trainer) -> None:
    path = run_folder(trainer) / "checkpoints" / CHECKPOINT
    trainer.save_checkpoint(path, weights_only=False)
    config = path.parent.parent / "config.yaml"
    command = (
        f"lightning-compress fit --config {config} --ckpt_path {path}"
        if config.is_file()
        else f"trainer.fit(model, data, ckpt_path={str(path)!r})"
    )
    rank_zero_info(f"Stopped at step {trainer.global_step}. Resume with:\n  {command}")


def check_writable(folder: Path) -> None:
    """Create a folder, and a file in it as a test, which is deleted.

    Raises:
        InputError: the folder cannot be written.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the run's folder {folder} cannot be written ({error.strerror}): free disk space or "
            "change its rights, or choose another with trainer.logger.init_args.save_dir"
        ) from error
