"""``--resume`` finds the recipe and the checkpoint of a run."""

import os
from pathlib import Path

import pytest

from lightning_compress.cli.resume import with_resumed_run
from lightning_compress.errors import InputError


def run(logs: Path, name: str, *checkpoints: str, written: float = 1.0) -> Path:
    folder = logs / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for number, checkpoint in enumerate(checkpoints):
        path = folder / "checkpoints" / checkpoint
        path.touch()
        os.utime(path, (written + number, written + number))
    return folder


def files(folder: Path, checkpoint: str) -> list[str]:
    path = folder / "checkpoints" / checkpoint
    return ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", str(path)]


def test_the_latest_state_is_taken_before_options_that_change_it(tmp_path: Path) -> None:
    folder = run(tmp_path, "a/version_0", "latest.ckpt", "epoch=1.ckpt")
    for given in (["--resume", str(folder)], [f"--resume={folder}"]):
        found = with_resumed_run(["fit", *given, "--trainer.max_epochs", "9"])
        assert found == [*files(folder, "latest.ckpt"), "--trainer.max_epochs", "9"]


def test_without_it_the_newest_checkpoint_that_is_no_compressed_model(tmp_path: Path) -> None:
    folder = run(tmp_path, "a/version_0", "epoch=1.ckpt", "epoch=2.ckpt", "post_training.ckpt")
    assert with_resumed_run(["fit", "--resume", str(folder)]) == files(folder, "epoch=2.ckpt")


@pytest.mark.parametrize("name", ["latest", "a"])
def test_the_run_that_was_written_last(tmp_path: Path, name: str) -> None:
    run(tmp_path, "a/version_0", "latest.ckpt", written=1)
    last = run(tmp_path, "a/version_1", "latest.ckpt", written=3)
    run(tmp_path, "a/version_2")
    run(tmp_path, "b/version_0", "latest.ckpt", written=2)
    place = name if name == "latest" else str(tmp_path / name)
    found = with_resumed_run(["fit", "--resume", place], logs=tmp_path)
    assert found == files(last, "latest.ckpt")


def test_other_commands_are_left_alone() -> None:
    arguments = ["fit", "--config", "resume.yaml"]
    assert with_resumed_run(arguments) == arguments


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    empty = run(tmp_path, "a/version_0")
    for arguments, message in (
        (["fit", "--resume"], "needs the folder of a run"),
        (["fit", "--resume", "--trainer.max_epochs"], "needs the folder of a run"),
        (["fit", "--resume", str(tmp_path / "b")], "there is no run with a checkpoint in"),
        (["fit", "--resume", str(empty)], "has no checkpoint: it stopped before the first"),
    ):
        with pytest.raises(InputError, match=message):
            with_resumed_run(arguments)
