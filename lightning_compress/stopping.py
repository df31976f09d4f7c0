"""Ctrl-C and SIGTERM as exceptions, raised at once or at a better moment."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = 2.0  # an exception can get lost, in a destructor for example


class Stopped(KeyboardInterrupt):
    """A signal has asked the process to end; everywhere handled as Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by an exception.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


def exit_status(stopped: BaseException | None) -> int:
    """What a process ends with that a signal has stopped, as shells have it."""
    return 128 + int(getattr(stopped, "number", signal.SIGINT))


class StopSignals:
    """Makes Ctrl-C and SIGTERM raise :class:`Stopped` in the main thread.

    Args:
        notify: called when the exception is put off.

    Attributes:
        asked: the number of the signal that came first; None before.
        patience_s: seconds that the exception is put off, for the run to come to a better moment
            and end by itself; None: it is raised at once. A second signal is not put off.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.asked: int | None = None
        self.patience_s: float | None = None
        self._before: dict[int, Any] = {}
        self._timer: Any = None
        self._notify = notify

    def listen(self) -> None:
        """Handle the signals from now on, also those that somebody else has begun to handle."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # In the background, where the shell ignores Ctrl-C for the run, it stays ignored.
            if handler not in (signal.SIG_IGN, self._on_signal):
                self._before[number] = handler
                signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """Let nothing interrupt the end of the run."""
        self._stop_timer()
        for number in self._before:
            signal.signal(number, self._ignored)

    def release(self) -> None:
        """Give the signals back to whom handled them before, unless somebody has taken them."""
        self._stop_timer()
        for number, handler in self._before.items():
            if signal.getsignal(number) in (self._on_signal, self._ignored):
                signal.signal(number, handler)
        self._before = {}
        self.asked, self.patience_s = None, None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = self.asked is None, number
        if self.patience_s is None or not first:
            self._start_timer(_AGAIN_S)
            raise Stopped(number)
        self._start_timer(self.patience_s)
        self._notify()

    def _ignored(self, number: int, frame: FrameType | None) -> None:
        pass

    def _on_timer(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise Stopped(self.asked)

    def _start_timer(self, seconds: float) -> None:
        if hasattr(signal, "setitimer"):  # not on Windows
            if self._timer is None:
                self._timer = signal.signal(signal.SIGALRM, self._on_timer)
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._timer)
            self._timer = None
