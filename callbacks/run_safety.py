"""Safety of a run: disk space is checked first, and the latest state is kept in a checkpoint."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_compress.errors import InputError
from lightning_compress.stopping import Stopped, StopSignals

from .run import callbacks_of, is_dev_run, model_checkpoints, run_folder

CHECKPOINT = "latest.ckpt"
_PERIOD_S = 60.0
_PATIENCE_S = 2.0
_DECISION_S = 0.5  # between two decisions of several processes
_SHARE = 0.02  # of the time of a run that saving its latest state may take
_BYTES_A_PARAMETER = 12  # float32 weight and the two moments of Adam
_FILES = 4  # best and last checkpoint, the one on interruption, and the model folders together


class RunSafety(L.Callback):
    """Check the disk space of a run, and keep its latest state in ``checkpoints/latest.ckpt``.

    The state is saved after an epoch and every minute, unless that took more than 2 % of the time,
    at the end of the training, and whenever a fit ends early. A run resumed from it is equal to an
    uninterrupted one, as it is saved between two optimizer steps and at no other moment: the first
    Ctrl-C or SIGTERM stops the run at the next such moment, the latest two seconds and two batches
    later; then, after a second signal, or after an error in the middle of a step, the file stays as
    it was. What is done before the first batch and after the last one stops at once and is done
    again. After a loss that is not finite the file holds the state before the failing batch. Has no
    options. ``lightning-compress fit`` adds it to every run.

    Must be the last callback, so that the others have handled the batch when it stops the run.

    Raises:
        InputError: at the start of ``fit``; the run's folder cannot be written or the disk is full.

    Example::

        trainer = L.Trainer(callbacks=[HeadPruning(removed_fraction=0.5), RunSafety()])
    """

    def __init__(self) -> None:
        self._signals = StopSignals(_announce)
        self._training = False
        self._between_steps, self._is_saved = False, False
        self._versions: list[tuple[int, int]] = []  # of the tensors of the module, between steps
        self._batches = 0  # those that are finished
        self._begun_at, self._batch_s, self._decides_at = 0.0, 0.0, 0
        self._saved_at, self._cost_s, self._epoch = 0.0, 0.0, 0

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

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let what ModelCheckpoint has chosen so far hold, however its folder is named now."""
        for one in model_checkpoints(trainer):
            state = checkpoint.get("callbacks", {}).get(one.state_key)
            path = Path(trainer.ckpt_path or "")
            if state and one.dirpath and path.resolve().parent == Path(one.dirpath).resolve():
                checkpoint["callbacks"][one.state_key] = _moved(state, one.dirpath)

    # Lightning begins to handle signals after ``on_fit_start``: these are the first hooks then.
    def on_sanity_check_start(self, *args: Any) -> None:
        """Handle Ctrl-C and SIGTERM."""
        self._signals.listen()

    def on_validation_start(self, *args: Any) -> None:
        """Handle Ctrl-C and SIGTERM."""
        self._signals.listen()

    def on_test_start(self, *args: Any) -> None:
        """Handle Ctrl-C and SIGTERM."""
        self._signals.listen()

    def on_predict_start(self, *args: Any) -> None:
        """Handle Ctrl-C and SIGTERM."""
        self._signals.listen()

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that what checkpoints and early stopping go by is logged.

        Raises:
            InputError: a validation metric that a callback monitors is not.
        """
        later = set(getattr(pl_module, "later_metrics", ()))
        known = sorted(trainer.callback_metrics.keys() | later)
        if not any(name.startswith("val_") for name in known):
            return  # this module logs nothing yet
        for callback in callbacks_of(trainer):
            monitor = str(getattr(callback, "monitor", None))
            if monitor.startswith("val_") and monitor not in known:
                name = type(callback).__name__
                raise InputError(
                    f"{name}.monitor is {monitor}, which nothing logs: validation logs "
                    f"{', '.join(known)}; name one of these"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The state is that of a step's end, and what follows may be stopped at once."""
        self._signals.listen()
        self._training = True
        self._batches = self._decides_at = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._saved_at, self._cost_s, self._epoch = time.monotonic(), 0.0, trainer.current_epoch
        self._enter_pause(trainer, pl_module)

    def _enter_pause(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between two steps; several processes have to agree before one of them stops."""
        self._between_steps, self._versions = True, _versions(pl_module)
        self._is_saved = False
        self._signals.patience_s = None if trainer.world_size == 1 else _PATIENCE_S

    def on_train_batch_start(self, *args: Any) -> None:
        """A batch is finished rather than given up."""
        self._begun_at = time.monotonic()
        self._signals.patience_s = _PATIENCE_S + 2 * self._batch_s

    def on_before_optimizer_step(self, *args: Any) -> None:
        """The state is being changed."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Between two steps: stop if that is asked for, or save the state if it is due."""
        self._batch_s = time.monotonic() - self._begun_at
        self._batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._between_steps = _is_between_steps(trainer)
        if not self._between_steps:
            return
        stops, saves = self._decision(trainer)
        if (stops or saves) and not is_dev_run(trainer):
            self._save(trainer)
        if stops:
            self._is_saved = True
            raise Stopped(self._signals.asked or signal.SIGTERM)
        # What follows the last batch of an epoch is not done again in a resumed run.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._between_steps = False
        else:
            self._enter_pause(trainer, pl_module)

    def _decision(self, trainer: L.Trainer) -> tuple[bool, bool]:
        """Whether to stop, and whether to save the state; the same on all processes."""
        if self._batches < self._decides_at:
            return False, False
        asked, due = self._signals.asked is not None, self._is_due(trainer)
        if trainer.world_size == 1:
            return asked, due
        flag = torch.tensor(float(asked), device=trainer.strategy.root_device)
        asked = bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)
        batches = max(1, int(_DECISION_S / max(self._batch_s, 1e-3)))
        due, batches = trainer.strategy.broadcast((due, batches))
        self._decides_at = self._batches + batches
        return asked, due

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether an epoch or a minute has passed, and saving is cheap enough."""
        passed = time.monotonic() - self._saved_at
        new_epoch = trainer.current_epoch > self._epoch
        return (new_epoch or passed > _PERIOD_S) and passed * _SHARE >= self._cost_s

    def _save(self, trainer: L.Trainer) -> None:
        before = time.monotonic()
        try:
            trainer.save_checkpoint(_latest(trainer), weights_only=False)
        except OSError as error:  # the run itself can go on
            rank_zero_warn(f"the latest state of the run could not be saved: {error}")
        self._saved_at, self._epoch = time.monotonic(), trainer.current_epoch
        self._cost_s = self._saved_at - before

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint, and print the command that resumes from it."""
        self._signals.ignore()
        refused = isinstance(exception, InputError) and trainer.global_step == 0
        if self._training and not refused and not is_dev_run(trainer):
            # In the middle of a forward pass, too, unless that has changed a tensor, as the
            # statistics of a norm. Other processes would have to take part in saving.
            unchanged = self._between_steps and self._versions == _versions(pl_module)
            if unchanged and trainer.world_size == 1 and not self._is_saved:
                _forget_unfinished_batch_(trainer, self._batches)
                self._save(trainer)
                self._is_saved = True
            _tell_how_to_go_on(trainer, saved=self._is_saved)
        elif isinstance(exception, Stopped) and trainer.global_step:
            _tell_how_to_go_on(trainer, saved=True)
        self._training = False
        self._signals.release()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state that training has led to; what follows may be stopped at once."""
        if not is_dev_run(trainer):
            self._save(trainer)
        asked, self._training = self._signals.asked, False
        if asked is not None:
            raise Stopped(asked)
        self._signals.patience_s = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._signals.release()


def _moved(state: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The state of a ModelCheckpoint with all its paths in a folder, which Lightning compares.

    A run may be named by a relative path first and by an absolute one, or be moved, later.
    """

    def here(path: str) -> str:
        return path and str(Path(folder) / Path(path).name)

    best = {here(path): score for path, score in state["best_k_models"].items()}
    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    moved = {name: here(state[name]) for name in paths}
    return {**state, **moved, "best_k_models": best, "dirpath": folder}


def _announce() -> None:
    rank_zero_info("\nStopping after this batch; press Ctrl-C again to stop at once.")


def _versions(module: torch.nn.Module) -> list[tuple[int, int]]:
    """For each parameter and buffer which tensor it is, and how often it has been changed."""
    tensors = [*module.parameters(), *module.buffers()]
    return [(id(one), 0 if one.is_inference() else one._version) for one in tensors]


def _latest(trainer: L.Trainer) -> Path:
    return run_folder(trainer) / "checkpoints" / CHECKPOINT


def _is_between_steps(trainer: L.Trainer) -> bool:
    """Whether the end of this batch is a state to go on from.

    It is none while gradients are accumulated, which no checkpoint holds, nor before a validation,
    which a resumed run would leave out.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    validates = fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)
    return not loop.epoch_loop._should_accumulate() and not validates


def _forget_unfinished_batch_(trainer: L.Trainer, finished: int) -> None:
    """Take back that a batch has begun, which Lightning would count twice in a resumed run."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if progress.total.ready > finished:
        both: tuple[Any, ...] = (progress.total, progress.current)
        for counts in both:
            counts.ready = counts.started = counts.processed = counts.completed


def _tell_how_to_go_on(trainer: L.Trainer, *, saved: bool) -> None:
    path = _latest(trainer)
    if not saved and not path.is_file():
        rank_zero_info(f"Stopped after step {trainer.global_step}, before a state was saved.")
        return
    run = path.parent.parent
    command = (
        f"lightning-compress fit --resume {run}"
        if (run / "config.yaml").is_file()
        else f"trainer.fit(model, data, ckpt_path={str(path)!r})"
    )
    where = f"at step {trainer.global_step}"
    if not saved:
        where = f"after step {trainer.global_step}; the last state that could be saved is earlier"
    rank_zero_info(f"Stopped {where}. Resume with:\n  {command}")


def check_writable(folder: Path) -> None:
    """Create a folder, and a file in it as a test, which is deleted.

    Raises:
        InputError: the folder cannot be written.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink(missing_ok=True)  # another process of the run may have done so
    except OSError as error:
        raise InputError(
            f"the run's folder {folder} cannot be written ({error.strerror}): free disk space or "
            "change its rights, or choose another with trainer.logger.init_args.save_dir"
        ) from error
