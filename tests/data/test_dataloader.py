"""The loader under a real Trainer: what a resumed run sees is what it would have seen."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError

# Resumed runs save nothing themselves.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Recorder(L.LightningModule):
    """Writes down which examples come; may stop in the middle of a step."""

    def __init__(self, stop_at: int | None = None, count_steps: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[list[int]] = []
        self.validated: list[int] = []
        self.stop_at = stop_at
        self.count_steps = count_steps  # which builds the loader before the checkpoint is read

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise RuntimeError("stopped")
        self.seen.append(batch["example_id"].tolist())
        return (self.weight * batch["labels"].float()).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += batch["example_id"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.count_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnException(Callback):
    """Saves at once, in the middle of whatever was going on."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_exception(self, trainer: L.Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.file)


Build = Callable[..., TextClassificationDataModule]
TrainerOf = Callable[..., L.Trainer]


def fit(
    trainer_of: TrainerOf, data: TextClassificationDataModule, *, resume: Any = None, **options: Any
) -> Recorder:
    recorder = Recorder(options.pop("stop_at", None), options.pop("count_steps", True))
    saving = any(isinstance(callback, ModelCheckpoint) for callback in options.get("callbacks", ()))
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, **options}
    options["enable_checkpointing"] = saving
    trainer = trainer_of(**options)
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder


def saver(folder: Path, **options: Any) -> Callback:
    name = "{epoch}-{step}"
    return ModelCheckpoint(dirpath=folder, filename=name, save_top_k=-1, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_are_partitions_and_differ(
    classification: Build, quiet_trainer: TrainerOf, workers: int
) -> None:
    data = classification(num_workers=workers, validation_fraction=0.2)
    recorder = fit(quiet_trainer, data, max_epochs=2)
    first, second = recorder.seen[:12], recorder.seen[12:]
    assert len(second) == 12
    train, validation = set(chain(*first)), set(recorder.validated)
    assert sorted(chain(*first)) == sorted(chain(*second)) == sorted(train)
    assert first != second
    assert train | validation == set(range(60))
    assert not train & validation


@pytest.mark.parametrize(
    ("options", "saving"),
    [
        ({}, {"every_n_train_steps": 1}),
        ({"count_steps": False}, {"every_n_train_steps": 3}),
        ({"max_steps": 30}, {"every_n_train_steps": 5}),
        ({}, {"every_n_epochs": 1}),
        ({}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
        ({"val_check_interval": 4}, {"every_n_epochs": 1}),
        ({"accumulate_grad_batches": 2}, {"every_n_train_steps": 2}),
        ({"limit_train_batches": 9}, {"every_n_train_steps": 4}),
    ],
)
def test_every_checkpoint_resumes_with_the_next_batch(
    classification: Build,
    quiet_trainer: TrainerOf,
    tmp_path: Path,
    options: dict[str, Any],
    saving: dict[str, Any],
) -> None:
    folder = tmp_path / "checkpoints"
    callbacks = [saver(folder, **saving)]
    whole = fit(quiet_trainer, classification(), callbacks=callbacks, **options).seen
    checkpoints = sorted(folder.iterdir())
    assert checkpoints
    for checkpoint in checkpoints[:: max(1, len(checkpoints) // 9)]:
        step = torch.load(checkpoint, weights_only=True)["global_step"]
        done = step * options.get("accumulate_grad_batches", 1)
        resumed = fit(quiet_trainer, classification(), resume=checkpoint, **options)
        assert resumed.seen == whole[done:], checkpoint.name


def test_resume_with_workers_that_fetch_ahead(
    classification: Build, quiet_trainer: TrainerOf, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_epochs": 2}
    callbacks = [saver(tmp_path / "c", every_n_train_steps=5)]
    data = classification(num_workers=1)
    whole = fit(quiet_trainer, data, callbacks=callbacks, **options).seen
    checkpoint = tmp_path / "c" / "epoch=0-step=5.ckpt"
    resumed = fit(quiet_trainer, classification(num_workers=1), resume=checkpoint, **options)
    assert resumed.seen == whole[5:]


def test_a_batch_in_flight_when_the_run_stops_comes_again(
    classification: Build, quiet_trainer: TrainerOf, tmp_path: Path
) -> None:
    whole = fit(quiet_trainer, classification()).seen
    for stop_at in (0, 5, 17):
        callback = SaveOnException(tmp_path / f"{stop_at}.ckpt")
        with pytest.raises(RuntimeError, match="stopped"):
            fit(quiet_trainer, classification(), stop_at=stop_at, callbacks=[callback])
        resumed = fit(quiet_trainer, classification(), resume=tmp_path / f"{stop_at}.ckpt")
        assert resumed.seen == whole[stop_at:]


def test_resume_with_other_batches_is_refused_in_the_middle_of_an_epoch_alone(
    classification: Build, quiet_trainer: TrainerOf, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_epochs": 2}
    callbacks = [saver(tmp_path / "c", every_n_train_steps=5), saver(tmp_path / "e")]
    fit(quiet_trainer, classification(), callbacks=callbacks, **options)
    other = classification(batch_size=5)
    with pytest.raises(InputError, match=r"data\.batch_size.*resume with the same"):
        fit(quiet_trainer, other, resume=tmp_path / "c" / "epoch=0-step=5.ckpt", **options)
    end = min((tmp_path / "e").iterdir())
    assert len(fit(quiet_trainer, classification(batch_size=5), resume=end, **options).seen) == 11


def test_loading_leaves_the_global_random_numbers_alone(classification: Build) -> None:
    data = classification()
    data.setup("fit")
    before = torch.get_rng_state()
    batches = list(data.train_dataloader())
    assert len(batches) == 14
    assert torch.equal(torch.get_rng_state(), before)


def test_overfitting_repeats_the_same_batches(
    classification: Build, quiet_trainer: TrainerOf
) -> None:
    with pytest.warns(UserWarning, match="requested to overfit"):
        seen = fit(quiet_trainer, classification(), overfit_batches=2, max_epochs=3).seen
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert len(seen[0]) == 4


def test_prediction_sees_every_row_once_without_labels(
    classification: Build, quiet_trainer: TrainerOf
) -> None:
    class Predictor(Recorder):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[int]:
            assert "labels" not in batch
            return list(batch["example_id"].tolist())

    predicted = quiet_trainer().predict(Predictor(), datamodule=classification())
    assert predicted is not None
    assert sorted(chain(*predicted)) == [2 * 2**40 + row for row in range(20)]
