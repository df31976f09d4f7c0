"""Objects in another process, and what happens when that fails, dies or hangs."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from lightning_compress.evaluation.runtimes.runtime import TimeLimit
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    Worker,
    WorkerError,
    WorkerSide,
    arrays_of,
)


class Fragile:
    def __init__(self, number):
        if number < 0:
            raise ValueError(f"no number {number}\nand more lines")
        self.number = number

    def add(self, other):
        os.write(1, b"chatter")
        return self.number + other

    def fail(self):
        raise RuntimeError("cannot")

    def crash(self):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(self):
        time.sleep(60)


def test_a_worker_calls_and_tells_what_went_wrong(capfd):
    worker = Worker(Fragile, 3, limit=TimeLimit(60))
    assert worker.call("add", 4) == 7
    with pytest.raises(WorkerError, match=r"^cannot$"):
        worker.call("fail")
    assert worker.call("add", 5) == 8  # it lives on
    with pytest.raises(WorkerError, match="its process died, killed by signal 11"):
        worker.call("crash")
    with pytest.raises(WorkerError, match="its process died"):
        worker.call("add", 5)
    worker.close()
    assert capfd.readouterr().out == ""


def test_a_worker_that_cannot_be_built_or_hangs():
    with pytest.raises(WorkerError, match=r"^no number -1$"):
        Worker(Fragile, -1, limit=TimeLimit(60))
    worker = Worker(Fragile, 3, limit=TimeLimit(120))
    start = time.perf_counter()
    with pytest.raises(WorkerError, match=r"it took longer than 0\.2 s \(timeout_s\)"):
        worker.call("hang", limit=TimeLimit(0.2))
    assert time.perf_counter() - start < 50  # it sleeps for 60
    assert not worker._process.is_alive()


def test_a_limit_that_earlier_steps_used_up_is_over_at_once():
    limit = TimeLimit(0.01)
    time.sleep(0.02)
    with pytest.raises(WorkerError, match=r"it took longer than 0\.01 s"):
        Worker(Fragile, 3, limit=limit)


class Counting(WorkerSide):
    """Counts how often each batch is run."""

    def __init__(self, warmup_batches):
        self.ran = []
        super().__init__(self, warmup_batches)

    def load(self, batch):
        self._loaded[0] = batch
        return 0

    def __call__(self, loaded):
        self.ran.append(loaded["input_ids"].shape)
        return torch.zeros(1)

    def size_bytes(self):
        return 0

    def peak_memory_bytes(self, number):
        return None


def test_building_includes_the_warm_up():
    batches = [{"input_ids": torch.ones(size, 3), "labels": torch.ones(size)} for size in (4, 1)]
    worker = Counting([arrays_of(batch) for batch in batches])
    gc.enable()
    assert worker.ran == [(4, 3), (1, 3)]


@pytest.mark.slow
def test_a_worker_does_not_run_the_script_that_it_is_started_from(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('here', flush=True)\n"
        "from lightning_compress.evaluation.runtimes.runtime import TimeLimit\n"
        "from lightning_compress.evaluation.runtimes.subprocess_worker import Worker\n"
        "worker = Worker(dict, {'a': 1}, limit=TimeLimit(60))\n"
        "print(worker.call('get', 'a'))\n"
        "worker.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "here\n1\n"


class Busy:
    """Writes its process id to a file and never answers."""

    def __init__(self, place):
        place.write_text(str(os.getpid()))
        while True:
            sum(range(10_000))


def test_a_busy_worker_ends_with_a_parent_that_was_killed(tmp_path):
    place = tmp_path / "pid"
    parent = multiprocessing.get_context("spawn").Process(target=_starts_busy, args=(place,))
    parent.start()
    while not (place.is_file() and place.read_text()):
        time.sleep(0.05)
    worker = psutil.Process(int(place.read_text()))
    assert worker.is_running()
    parent.kill()
    parent.join()
    worker.wait(timeout=10)


def _starts_busy(place):
    Worker(Busy, place, limit=TimeLimit(60))
