"""A teacher's answers on disk: equal to what was said, whole or not there, made once."""

import errno
import io
import json
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

from lightning_compress.distillation import teacher_cache as chunks_module
from lightning_compress.distillation import teacher_cache as teacher_store
from lightning_compress.distillation.teacher_cache import Chunk, Field, TeacherStore, open_or_write
from lightning_compress.errors import InputError

Said = dict[int, dict[str, NDArray[Any]]]


def said(count: int = 23, first: int = 100) -> Said:
    """What a teacher says, in a plain dict: by id, then by name; nothing is padded."""
    draw = np.random.default_rng(count)
    answers: Said = {}
    for example in draw.permutation(np.arange(first, first + 3 * count, 3)):
        tokens = int(draw.integers(0, 7))
        answers[int(example)] = {
            "logits": draw.normal(size=2).astype(np.float32),
            "score": draw.normal(size=()),
            "values": draw.normal(size=(tokens, 3)).astype(np.float32),
            "indices": draw.integers(0, 999, size=(tokens, 3), dtype=np.int32),
            "logsumexp": draw.normal(size=tokens).astype(np.float32),
            "hidden_1": draw.normal(size=(tokens, 2, 2)).astype(np.float16),
        }
    return answers


def padded(rows: list[NDArray[Any]], length: int | None = None) -> NDArray[Any]:
    longest = max(map(len, rows)) if length is None else length
    return np.stack(
        [np.pad(row, [(0, longest - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows]
    )


def chunks_of(answers: Said, size: int = 4) -> Iterator[Chunk]:
    ids = list(answers)
    for part in (ids[i : i + size] for i in range(0, len(ids), size)):
        rows = [answers[i] for i in part]
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


def stored(folder: Path, answers: Said, size: int = 4) -> TeacherStore:
    return open_or_write(folder, list(answers), lambda: chunks_of(answers, size))


def never() -> Iterator[Chunk]:
    raise AssertionError("the teacher was asked again")


def assert_equal(store: TeacherStore, answers: Said, ids: list[int], **options: int) -> None:
    rows = store.rows(ids, **options)
    assert list(rows) == list(store.fields) == list(next(iter(answers.values())))
    for name, values in rows.items():
        one_by_one = [answers[i][name] for i in ids]
        per_token = store.fields[name].per_token
        expected = padded(one_by_one, **options) if per_token else np.stack(one_by_one)
        np.testing.assert_array_equal(values, expected, strict=True)


@pytest.mark.parametrize("batch_bytes", [1, 1000, 2**23])
def test_rows_are_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(chunks_module, "_BATCH_BYTES", batch_bytes)
    answers = said()
    draw = np.random.default_rng(0)
    for store in (
        stored(tmp_path / "key", answers),
        open_or_write(tmp_path / "key", np.array(list(answers)), never),
    ):
        assert len(store) == 23
        assert store.ids.tolist() == sorted(answers)
        for count in (1, 5, 40):
            assert_equal(store, answers, draw.choice(list(answers), count).tolist())
        assert_equal(store, answers, list(answers), length=11)
    assert store.fields["logits"] == Field("float32", (2,), per_token=False)
    assert store.fields["score"] == Field("float64", (), per_token=False)
    assert store.fields["hidden_1"] == Field("float16", (2, 2), per_token=True)


def test_rows_may_be_written_to_and_none_may_be_asked_for(tmp_path: Path) -> None:
    answers = said()
    store = stored(tmp_path / "key", answers)
    ids = list(answers)[:3]
    for values in store.rows(ids).values():
        values += 1
    assert_equal(store, answers, ids)
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
    answers = said()
    store = stored(tmp_path / "key", answers)
    known = next(iter(answers))
    for unknown in (-1, 101, 10**6):
        with pytest.raises(InputError, match=rf"nothing of 1 of 2 examples, {unknown} among"):
            store.rows([known, unknown])
    longest = max(answers, key=lambda i: len(answers[i]["values"]))
    with pytest.raises(ValueError, match="more than the length 2"):
        store.rows([longest], length=2)


def test_the_description_is_kept_beside_the_rows(tmp_path: Path) -> None:
    answers = said()
    description = {"teacher": "bert", "layers": (1, 3)}
    for write in (lambda: chunks_of(answers), never):
        store = open_or_write(tmp_path / "key", list(answers), write, description)
        assert store.description == {"teacher": "bert", "layers": [1, 3]}
    meta = json.loads((tmp_path / "key" / "meta.json").read_text())
    assert meta["examples"] == 23
    assert sorted(path.name for path in (tmp_path / "key").iterdir()) == ["meta.json", "rows.arrow"]
    with pytest.raises(TypeError, match="serializable"):
        open_or_write(tmp_path / "other", list(answers), never, {"teacher": object()})


def test_other_processes_map_it_themselves(tmp_path: Path) -> None:
    answers = said()
    sent = pickle.dumps(stored(tmp_path / "key", answers))
    assert len(sent) < 1000
    assert_equal(pickle.loads(sent), answers, list(answers))


def damaged(folder: Path, kind: str) -> None:
    rows, meta = folder / "rows.arrow", folder / "meta.json"
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
    elif kind == "without meta":
        meta.unlink()
    elif kind == "cut meta":
        meta.write_text(meta.read_text()[:-3])
    elif kind == "meta of something else":
        meta.write_text("[1]")
    elif kind == "another shape":
        old = json.loads(meta.read_text())
        old["fields"]["values"]["shape"] = [1, 3]
        meta.write_text(json.dumps(old))


@pytest.mark.parametrize(
    "kind",
    ["flipped", "truncated", "emptied", "without rows", "without meta", "cut meta",
     "meta of something else", "another shape"],
)  # fmt: skip
def test_a_damaged_store_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    answers = said()
    stored(tmp_path / "key", answers)
    assert caplog.messages == []
    damaged(tmp_path / "key", kind)
    assert_equal(stored(tmp_path / "key", answers), answers, list(answers))
    assert len(caplog.messages) == 1
    assert "is made anew" in caplog.messages[0]
    open_or_write(tmp_path / "key", list(answers), never)


def test_a_store_of_another_format_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = said()
    with monkeypatch.context() as older:
        older.setattr(teacher_store, "_FORMAT", 0)
        stored(tmp_path / "key", answers)
    assert_equal(stored(tmp_path / "key", answers), answers, list(answers))
    assert "its format is 0, not 1" in caplog.messages[0]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    answers = said(3)
    folder = tmp_path / "key"
    stored(folder, answers)
    for name in ("rows.arrow", "meta.json"):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), 7):
            broken = bytearray(whole)
            broken[place] ^= 4
            (folder / name).write_bytes(broken)
            with pytest.raises((ValueError, KeyError)):
                teacher_store._open(folder, np.array(sorted(answers)))
        (folder / name).write_bytes(whole)
    open_or_write(folder, list(answers), never)


@pytest.mark.parametrize("other", [said(24), said(22), said(23, first=101)])
def test_a_store_of_other_examples_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: Said
) -> None:
    stored(tmp_path / "key", said())
    store = stored(tmp_path / "key", other)
    assert_equal(store, other, list(other))
    assert "it holds 23 examples" in caplog.messages[0]


def test_what_is_open_stays_readable_when_it_is_replaced(tmp_path: Path) -> None:
    answers = said()
    store = stored(tmp_path / "key", answers)
    stored(tmp_path / "key", said(24))
    assert_equal(store, answers, list(answers))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the teacher's file is gone")])
def test_a_stop_half_way_leaves_nothing(tmp_path: Path, error: Any) -> None:
    answers = said()

    def stopped() -> Iterator[Chunk]:
        yield next(chunks_of(answers))
        assert (tmp_path / ".key.draft").is_dir()
        raise error

    with pytest.raises(BaseException, match=r"the teacher's file is gone|^$") as caught:
        open_or_write(tmp_path / "key", list(answers), stopped)
    assert not isinstance(caught.value, InputError)  # it is no fault of the cache's place
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    assert_equal(stored(tmp_path / "key", answers), answers, list(answers))


BATCH = np.zeros((2, 3), dtype=np.float32)
FIRST, SECOND = (Chunk(np.array([i]), {"a": BATCH[:1]}) for i in range(2))
MISTAKES: dict[str, list[Chunk]] = {
    "nothing": [],
    "of which 1 are": [FIRST],
    "holds 3 examples": [Chunk(np.arange(2), {"a": BATCH}), SECOND],
    "it holds 2 examples": [Chunk(np.array([0, 2]), {"a": BATCH})],
    "a chunk has the fields": [FIRST, Chunk(np.array([1]), {"b": BATCH[:1]})],
    "needs lengths": [Chunk(np.arange(2), {}, {"a": BATCH})],
    "length says otherwise": [Chunk(np.arange(2), {}, {"a": BATCH}, np.array([4, 0]))],
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
    monkeypatch.setattr(chunks_module, "_BATCH_BYTES", 1)
    monkeypatch.setattr(FullDisk, "room", room)
    answers = said()
    with monkeypatch.context() as patched:
        patched.setattr(pa, "OSFile", lambda *_: pa.PythonFile(FullDisk(), "w"))
        with pytest.raises(InputError, match=r"model\.cache_dir: .*No space left.*with room"):
            stored(tmp_path / "key", answers)
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    assert_equal(stored(tmp_path / "key", answers), answers, list(answers))


def test_a_disk_full_at_the_last_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / "key", said())
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


@pytest.mark.parametrize("in_the_way", ["file", "file/deeper"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / in_the_way / "key", said())


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("somebody's")
    with pytest.raises(InputError, match=r"model\.cache_dir"):
        stored(tmp_path / "key", said())
    assert (tmp_path / "key").read_text() == "somebody's"
    assert not (tmp_path / ".key.draft").exists()


def test_a_read_only_place_is_named_but_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = said()
    stored(tmp_path / "key", answers)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("lightning_compress.atomic.FileLock", refuse)
    assert_equal(open_or_write(tmp_path / "key", list(answers), never), answers, list(answers))
    with pytest.raises(InputError, match=r"model\.cache_dir: .*Read-only"):
        stored(tmp_path / "other", answers)


def _target_mask(folder: Path, place: Path, results: Any) -> None:
    logging.disable()
    answers = said()

    def slowly() -> Iterator[Chunk]:
        (place / f"asked-{os.getpid()}").touch()
        for chunk in chunks_of(answers):
            time.sleep(0.05)
            yield chunk

    store = open_or_write(folder, list(answers), slowly)
    results.put(store.rows(sorted(answers))["logits"].tobytes())


def test_two_processes_ask_the_teacher_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the processes find this file
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [
        context.Process(target=_target_mask, args=(tmp_path / "cache" / "key", tmp_path, results))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    first, second = (results.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join(timeout=60)
        assert job.exitcode == 0
    assert first == second
    assert len(list(tmp_path.glob("asked-*"))) == 1


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from lightning_compress.distillation import teacher_cache as chunks
from lightning_compress.distillation.teacher_cache import Chunk
from lightning_compress.distillation.teacher_cache import open_or_write
chunks._BATCH_BYTES = 1

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
    answers = said()

    def meanwhile() -> Iterator[Chunk]:
        yield from chunks_of(answers)
        stored(tmp_path / "other", answers)

    assert_equal(open_or_write(tmp_path / "key", list(answers), meanwhile), answers, list(answers))
    open_or_write(tmp_path / "other", list(answers), never)
