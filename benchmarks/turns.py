"""Training runs that take turns, so that whatever else the machine does hits all of them alike.

Each runs in a process of its own, which sleeps while the others train: in one process their pools
of threads get into each other's way.
"""

import multiprocessing
import statistics
import time

import lightning as L

INTERVAL, WARMUP = 40, 4  # steps of a turn, and before the first


class TakeTurns(L.Callback):
    """Trains a block of steps when it is this process's turn, and times it."""

    def __init__(self, mine, next_one):
        self.mine, self.next_one = mine, next_one
        self.seconds, self.cpu_seconds = [], []  # of the clock, and of this process on a CPU
        self.started = None

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step % INTERVAL == WARMUP:
            self.end_turn()
            self.mine.acquire()
            self.started = time.perf_counter(), time.process_time()

    def end_turn(self):
        if self.started is not None:
            self.seconds.append(time.perf_counter() - self.started[0])
            self.cpu_seconds.append(time.process_time() - self.started[1])
        self.next_one.release()

    def on_train_end(self, *_):
        self.end_turn()


def take_turns(train, ways, blocks):
    """Train in so many ways at a time.

    Args:
        train: called in a process of its own with (way, steps, turns); trains so many steps with
            the callback ``turns`` and gives anything that can be sent back.
        ways: that can be sent to a process.
        blocks: of INTERVAL steps.

    Returns:
        For each way, the seconds a step of its blocks, and what ``train`` gave.
    """
    processes = multiprocessing.get_context("spawn")
    gates, queue = [processes.Semaphore(0) for _ in ways], processes.Queue()
    for index, way in enumerate(ways):
        gate, next_gate = gates[index], gates[(index + 1) % len(ways)]
        options = (train, way, index, WARMUP + blocks * INTERVAL, gate, next_gate, queue)
        processes.Process(target=_one, args=options).start()
    gates[0].release()
    found = sorted((queue.get() for _ in ways), key=lambda one: one[0])
    return [(seconds, given) for _, seconds, given in found]


def _one(train, way, index, steps, mine, next_one, queue):
    mine.acquire()  # also builds its model in turn
    turns = TakeTurns(mine, next_one)
    given = train(way, steps, turns)
    queue.put((index, [seconds / INTERVAL for seconds in turns.seconds], given))


def against(first, other):
    """Quartiles of the ratios between neighbouring blocks, less one."""
    ratios = [b / a for a, b in zip(first, other, strict=True)]
    return [ratio - 1 for ratio in statistics.quantiles(ratios, n=4)]
