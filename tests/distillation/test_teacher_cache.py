"""A teacher's outputs on disk: equal to what was written, whole or absent, written once."""

import errno
import io
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from lightning_compress.distillation import teacher_cache
from lightning_compress.distillation.teacher_cache import Chunk, Field, TeacherStore, open_or_write
from lightning_compress.errors import InputError

Rows = dict[int, dict[str, NDArray[Any]]]


def outputs(count: int = 23, first: int = 100) -> Rows:
    """Outputs of a teacher in a plain dict: by id, then by name; nothing is padded."""
    draw = np.random.default_rng(count)
    rows_by_id: Rows = {}
    for example in draw.permutation(np.arange(first, first + 3 * count, 3)):
        tokens = int(draw.integers(0, 7))
        rows_by_id[int(example)] = {
            "logits": draw.normal(size=2).astype(np.float32),
            "score": draw.normal(size=()),
            "values": draw.normal(size=(tokens, 3)).astype(np.float32),
            "indices": draw.integers(0, 999, size=(tokens, 3), dtype=np.int32),
            "logsumexp": draw.normal(size=tokens).astype(np.float32),
            "hidden_1": draw.normal(size=(tokens, 2, 2)).astype(np.float16),
        }
    return rows_by_id


def padded(rows: list[NDArray[Any]], length: int | None = None) -> NDArray[Any]:
    longest = max(map(len, rows)) if length is None else length
    return np.stack(
        [np.pad(row, [(0, longest - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows]
    )


def chunks_of(rows_by_id: Rows, size: int = 4) -> Iterator[Chunk]:
    ids = list(rows_by_id)
    for part in (ids[i : i + size] for i in range(0, len(ids), size)):
        rows = [rows_by_id[i] for i in part]
        lengths = np.array([len(row["values"]) for row in rows])
        per_token = {
            # What lies in the padding must not matter.
            name: padded([row[name] for row in rows], length=9)
            for name in ("values", "indices", "logsumexp", "hidden_1")
        }
        for values in per_token.values():
            values[np.arange(9) >= lengths[:, None]] = 77
        per_example = {name: np.stack([row[name] for row in rows]) for name in ("logits", "score")}
        yield Chunk(np.array(part), per_example, per_token, lengths)


def stored(folder: Path, rows_by_id: Rows, size: int = 4) -> TeacherStore:
    return open_or_write(folder, list(rows_by_id), lambda: chunks_of(rows_by_id, size))


def never() -> Iterator[Chunk]:
    raise AssertionError("the teacher was asked again")


def assert_equal(store: TeacherStore, rows_by_id: Rows, ids: list[int], **options: int) -> None:
    rows = store.rows(ids, **options)
    assert list(rows) == list(store.fields) == list(next(iter(rows_by_id.values())))
    for name, values in rows.items():
        one_by_one = [rows_by_id[i][name] for i in ids]
        per_token = store.fields[name].per_token
        expected = padded(one_by_one, **options) if per_token else np.stack(one_by_one)
        np.testing.assert_array_equal(values, expected, strict=True)


@pytest.mark.parametrize("batch_bytes", [1, 1000, 2**23])
def test_rows_are_what_was_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(teacher_cache, "_BATCH_BYTES", batch_bytes)
    rows_by_id = outputs()
    draw = np.random.default_rng(0)
    for store in (
        stored(tmp_path / "key", rows_by_id),
        open_or_write(tmp_path / "key", np.array(list(rows_by_id)), never),
    ):
        assert len(store) == 23
        assert store.ids.tolist() == sorted(rows_by_id)
        for count in (1, 5, 40):
            assert_equal(store, rows_by_id, draw.choice(list(rows_by_id), count).tolist())
        assert_equal(store, rows_by_id, list(rows_by_id), length=11)
    assert store.fields["logits"] == Field("float32", (2,), per_token=False)
    assert store.fields["score"] == Field("float64", (), per_token=False)
    assert store.fields["hidden_1"] == Field("float16", (2, 2), per_token=True)


def test_rows_may_be_written_to_and_none_may_be_asked_for(tmp_path: Path) -> None:
    rows_by_id = outputs()
    store = stored(tmp_path / "key", rows_by_id)
    ids = list(rows_by_id)[:3]
    for values in store.rows(ids).values():
        values += 1
    assert_equal(store, rows_by_id, ids)
    assert store.rows([])["values"].shape == (0, 0, 3)
    assert store.rows([])["logits"].shape == (0, 2)


def test_values_that_are_no_numbers_survive(tmp_path: Path) -> None:
    odd = np.array([[np.nan, np.inf], [-np.inf, -0.0]], dtype=np.float32)
    store = open_or_write(tmp_path / "key", [0, 1], lambda: [Chunk(np.arange(2), {"logits": odd})])
    assert store.rows([0, 1])["logits"].tobytes() == odd.tobytes()


def test_views_of_other_arrays_are_stored_by_value(tmp_path: Path) -> None:
    hidden = np.arange(48, dtype=np.int16).reshape(4, 3, 4)
    chunk = Chunk(
        np.arange(3), {"a": hidden[0, :, ::2]}, {"b": hidden.transpose(1, 0, 2)}, np.full(3, 4)
    )
    rows = open_or_write(tmp_path / "key", range(3), lambda: [chunk]).rows([2, 0])
    np.testing.assert_array_equal(rows["a"], hidden[0, [2, 0], ::2])
    np.testing.assert_array_equal(rows["b"], hidden.transpose(1, 0, 2)[[2, 0]])


def test_the_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    chunk = Chunk(np.arange(1000), {"hidden": np.ones((1000, 1000), dtype=np.float32)})
    open_or_write(tmp_path / "key", range(1000), lambda: [chunk])
    store = open_or_write(tmp_path / "key", range(1000), never)
    assert pa.total_allocated_bytes() - before < 100_000
    assert store.rows([5])["hidden"].sum() == 1000


def test_unknown_examples_and_too_short_a_length_are_refused(tmp_path: Path) -> None:
    rows_by_id = outputs()
    store = stored(tmp_path / "key", rows_by_id)
    known = next(iter(rows_by_id))
    for unknown in (-1, 101, 10**6):
        with pytest.raises(InputError, match=rf"not hold 1 of 2 examples, {unknown} among"):
            store.rows([known, unknown])
    longest = max(rows_by_id, key=lambda i: len(rows_by_id[i]["values"]))
    with pytest.raises(ValueError, match="more than the length 2"):
        store.rows([longest], length=2)


def test_a_store_is_two_files(tmp_path: Path) -> None:
    stored(tmp_path / "key", outputs())
    names = sorted(path.name for path in (tmp_path / "key").iterdir())
    assert names == ["rows.arrow", "rows.arrow.sha256"]


def test_other_processes_map_it_themselves(tmp_path: Path) -> None:
    rows_by_id = outputs()
    sent = pickle.dumps(stored(tmp_path / "key", rows_by_id))
    assert len(sent) < 1000
    assert_equal(pickle.loads(sent), rows_by_id, list(rows_by_id))


def damaged(folder: Path, kind: str) -> None:
    rows, digest = folder / "rows.arrow", folder / "rows.arrow.sha256"
    content = bytearray(rows.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 1
        rows.write_bytes(content)
    elif kind == "truncated":
        rows.write_bytes(content[:-3])
    elif kind == "emptied":
        rows.write_bytes(b"")
    elif kind == "without rows":
        rows.unlink()
    elif kind == "without digest":
        digest.unlink()
    elif kind == "cut digest":
        digest.write_text(digest.read_text()[:-3])
    elif kind == "another digest":
        digest.write_text("0" * 64)


@pytest.mark.parametrize(
    "kind",
    ["flipped", "truncated", "emptied", "without rows", "without digest", "cut digest",
     "another digest"],
)  # fmt: skip
def test_a_damaged_store_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    rows_by_id = outputs()
    stored(tmp_path / "key", rows_by_id)
    assert caplog.messages == []
    damaged(tmp_path / "key", kind)
    assert_equal(stored(tmp_path / "key", rows_by_id), rows_by_id, list(rows_by_id))
    assert len(caplog.messages) == 1
    assert "is written again" in caplog.messages[0]
    open_or_write(tmp_path / "key", list(rows_by_id), never)


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    rows_by_id = outputs(3)
    folder = tmp_path / "key"
    stored(folder, rows_by_id)
    for name in ("rows.arrow", "rows.arrow.sha256"):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), 7):
            broken = bytearray(whole)
            broken[place] ^= 4
            (folder / name).write_bytes(broken)
            with pytest.raises((ValueError, KeyError)):
                teacher_cache._open(folder, np.array(sorted(rows_by_id)))
        (folder / name).write_bytes(whole)
    open_or_write(folder, list(rows_by_id), never)


@pytest.mark.parametrize("other", [outputs(24), outputs(22), outputs(23, first=101)])
def test_a_store_of_other_examples_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: Rows
) -> None:
    stored(tmp_path / "key", outputs())
    store = stored(tmp_path / "key", other)
    assert_equal(store, other, list(other))
    assert "it holds 23 examples" in caplog.messages[0]


def test_what_is_open_stays_readable_when_it_is_replaced(tmp_path: Path) -> None:
    rows_by_id = outputs()
    store = stored(tmp_path / "key", rows_by_id)
    stored(tmp_path / "key", outputs(24))
    assert_equal(store, rows_by_id, list(rows_by_id))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the teacher's file is gone")])
def test_a_stop_half_way_leaves_nothing(tmp_path: Path, error: Any) -> None:
    rows_by_id = outputs()

    def stopped() -> Iterator[Chunk]:
        yield next(chunks_of(rows_by_id))
        assert (tmp_path / ".key.draft").is_dir()
        raise error

    with pytest.raises(BaseException, match=r"the teacher's file is gone|^$") as caught:
        open_or_write(tmp_path / "key", list(rows_by_id), stopped)
    assert not isinstance(caught.value, InputError)  # it is no fault of the cache's place
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    assert_equal(stored(tmp_path / "key", rows_by_id), rows_by_id, list(rows_by_id))


BATCH = np.zeros((2, 3), dtype=np.float32)
FIRST, SECOND = (Chunk(np.array([i]), {"a": BATCH[:1]}) for i in range(2))
MISTAKES: dict[str, list[Chunk]] = {
    "no outputs for any": [],
    "of which 1 are": [FIRST],
    "holds 3 examples": [Chunk(np.arange(2), {"a": BATCH}), SECOND],
    "it holds 2 examples": [Chunk(np.array([0, 2]), {"a": BATCH})],
    "a chunk has the fields": [FIRST, Chunk(np.array([1]), {"b": BATCH[:1]})],
    "needs lengths": [Chunk(np.arange(2), {}, {"a": BATCH})],
    "differs from the longest length": [Chunk(np.arange(2), {}, {"a": BATCH}, np.array([4, 0]))],
    "both per example": [Chunk(np.arange(2), {"a": BATCH}, {"a": BATCH}, np.array([1, 1]))],
    "only integers": [Chunk(np.arange(2), {"a": BATCH > 0})],
    "length": [Chunk(np.arange(2), {"a": BATCH[:1]})],
}  # fmt: skip


@pytest.mark.parametrize("reason", MISTAKES)
def test_chunks_that_do_not_fit_are_refused(tmp_path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_or_write(tmp_path / "key", [0, 1], lambda: MISTAKES[reason])
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


def test_without_examples_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        open_or_write(tmp_path / "key", [], never)


class FullDisk(io.RawIOBase):
    """A file that takes some bytes and no more."""

    room = 2000

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@pytest.mark.parametrize("room", [0, 2000])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(teacher_cache, "_BATCH_BYTES", 1)
    monkeypatch.setattr(FullDisk, "room", room)
    rows_by_id = outputs()
    with monkeypatch.context() as patched:
        patched.setattr(pa, "OSFile", lambda *_: pa.PythonFile(FullDisk(), "w"))
        with pytest.raises(InputError, match=r"model\.cache_dir: .*No space left.*with room"):
            stored(tmp_path / "key", rows_by_id)
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    assert_equal(stored(tmp_path / "key", rows_by_id), rows_by_id, list(rows_by_id))


def test_a_disk_full_at_the_last_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / "key", outputs())
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


@pytest.mark.parametrize("in_the_way", ["file", "file/deeper"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / in_the_way / "key", outputs())


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("somebody's")
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / "key", outputs())
    assert (tmp_path / "key").read_text() == "somebody's"
    assert not (tmp_path / ".key.draft").exists()


def test_a_read_only_place_is_named_but_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_by_id = outputs()
    stored(tmp_path / "key", rows_by_id)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("lightning_compress.atomic.FileLock", refuse)
    assert_equal(
        open_or_write(tmp_path / "key", list(rows_by_id), never), rows_by_id, list(rows_by_id)
    )
    with pytest.raises(InputError, match=r"model\.cache_dir: .*Read-only"):
        stored(tmp_path / "other", rows_by_id)


def _open_slowly(folder: Path, place: Path, results: Any) -> None:
    logging.disable()
    rows_by_id = outputs()

    def slowly() -> Iterator[Chunk]:
        (place / f"written-{os.getpid()}").touch()
        for chunk in chunks_of(rows_by_id):
            time.sleep(0.05)
            yield chunk

    store = open_or_write(folder, list(rows_by_id), slowly)
    results.put(store.rows(sorted(rows_by_id))["logits"].tobytes())


@pytest.mark.slow
def test_two_processes_run_the_teacher_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the processes find this file
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [
        context.Process(target=_open_slowly, args=(tmp_path / "cache" / "key", tmp_path, results))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    first, second = (results.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join(timeout=60)
        assert job.exitcode == 0
    assert first == second
    assert len(list(tmp_path.glob("written-*"))) == 1


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from lightning_compress.distillation import teacher_cache
from lightning_compress.distillation.teacher_cache import Chunk, open_or_write
teacher_cache._BATCH_BYTES = 1

def half():
    for i in range(2):
        yield Chunk(np.array([i]), {"logits": np.zeros((1, 2), dtype=np.float32)})
    print("half way", flush=True)
    time.sleep(60)

open_or_write(Path(sys.argv[1]), range(4), half)
"""


def killed_half_way(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()
    assert (folder.parent / f".{folder.name}.draft" / "rows.arrow").stat().st_size > 0


def test_a_killed_writer_leaves_neither_a_store_nor_a_lock(tmp_path: Path) -> None:
    for name in ("key", "another"):
        killed_half_way(tmp_path / name)
    assert not (tmp_path / "key").exists()
    chunk = Chunk(np.arange(4), {"logits": np.ones((4, 2), dtype=np.float32)})
    store = open_or_write(tmp_path / "key", range(4), lambda: [chunk])
    assert store.rows([3, 0])["logits"].tolist() == [[1, 1], [1, 1]]
    # What was left of the other one, which nobody may ever make again, is gone too.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.lock", ".key.lock", "key"]


def test_a_draft_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    rows_by_id = outputs()

    def meanwhile() -> Iterator[Chunk]:
        yield from chunks_of(rows_by_id)
        stored(tmp_path / "other", rows_by_id)

    assert_equal(
        open_or_write(tmp_path / "key", list(rows_by_id), meanwhile), rows_by_id, list(rows_by_id)
    )
    open_or_write(tmp_path / "other", list(rows_by_id), never)
