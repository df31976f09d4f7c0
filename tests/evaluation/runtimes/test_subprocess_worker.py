"""Objects in another process, and what happens when that fails, dies or hangs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_compress.evaluation.runtimes.subprocess_worker import (
    Worker,
    WorkerError,
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
    worker = Worker(Fragile, 3, timeout_s=60)
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
        Worker(Fragile, -1, timeout_s=60)
    worker = Worker(Fragile, 3, timeout_s=120)
    worker._timeout_s = 0.2
    start = time.perf_counter()
    with pytest.raises(WorkerError, match=r"it took longer than 0\.2 s"):
        worker.call("hang")
    assert time.perf_counter() - start < 50  # it sleeps for 60
    assert not worker._process.is_alive()


def test_a_worker_does_not_run_the_script_that_it_is_started_from(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('here', flush=True)\n"
        "from lightning_compress.evaluation.runtimes.subprocess_worker import Worker\n"
        "worker = Worker(dict, {'a': 1}, timeout_s=60)\n"
        "print(worker.call('get', 'a'))\n"
        "worker.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "here\n1\n"
