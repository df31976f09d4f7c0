"""Folders of a process's own, and those that killed processes have left."""

import re
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_compress.atomic import scratch_folder, updated_folder, whole_folder


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "lightning-compress-dead").mkdir()
    (tmp_path / "lightning-compress-dead.lock").touch()
    (tmp_path / "lightning-compress-somebody").mkdir()  # without a lock it is not ours
    (tmp_path / "lightning-compress-alive").mkdir()
    with FileLock(tmp_path / "lightning-compress-alive.lock"), scratch_folder() as mine:
        assert mine.is_dir()
        with scratch_folder() as other:
            assert mine.is_dir()
            assert other != mine
        assert not other.exists()
    kept = {path.name for path in tmp_path.iterdir()} - {"lightning-compress-alive.lock"}
    assert kept == {"lightning-compress-somebody", "lightning-compress-alive"}


@pytest.mark.parametrize("name", ["model", "a [b] *"])
def test_unfinished_folders_are_removed_by_the_next_writer(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    for left in (tmp_path / f".{name}-dead", folder / ".unfinished-dead"):
        left.mkdir(parents=True)
        left.with_name(f"{left.name}.lock").touch()
    for _ in range(2):
        with updated_folder(folder, marker="m", stale=re.compile("old")) as unfinished:
            (unfinished / "m").write_text("1")
    assert [path.name for path in folder.iterdir()] == ["m"]
    (folder / "m").unlink()
    folder.rmdir()
    with whole_folder(folder) as unfinished:
        (unfinished / "m").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == [name, "m"]
