"""What Ctrl-C and a scheduler ask of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SECONDS_OF_ONE_REQUEST = 1.0


class Signals:
    """Turns signals into flags that a run looks at between updates.

    SIGINT and SIGTERM set `stop`, SIGUSR1 sets `save`. Another SIGINT or SIGTERM ends the process
    at once, unless it comes within a second, where it is ignored: Slurm and `torchrun`, or a
    terminal and `torchrun`, both tell every process.

    A signal for which the process has a handler of its own sets `save`, and that handler gets it
    when all is saved. So submitit, which handles SIGTERM and SIGUSR2, requeues the newest state.
    The one of TorchRL's `LazyMemmapStorage` does not count: what it removes is removed when the
    process ends, too, and it would end a run as if it were killed.

    Handlers are set only in the main thread of a process, and only within the block.

    Attributes:
        stop: whether the run should end.
        save: whether the state should be saved after the present update.
        wait: whether something is half done, so that the run has to look at `stop` by itself;
            where false, SIGINT and SIGTERM raise SystemExit, and handlers of the process get their
            signals at once.
    """

    def __init__(self) -> None:
        self.stop = False
        self.save = False
        self.wait = False
        self._before: dict[int, Any] = {}
        self._owners: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._due: list[int] = []
        self._closed = False
        self._closing = threading.Lock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
                # Windows has neither SIGUSR1 nor SIGUSR2
                if (number := getattr(signal, name, None)) is None:
                    continue
                before = signal.getsignal(number)
                usual = before is signal.default_int_handler or (
                    getattr(before, "__module__", "").startswith("torchrl.data.")
                )
                if callable(before) and not usual:
                    self._owners[number] = before
                elif name == "SIGUSR2":
                    # asks nothing of a run itself
                    continue
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._closing:
            self._closed = True
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def act(self, stop: bool | None = None) -> None:
        """Do what signals asked for; all must be saved.

        Args:
            stop: whether to end, where several processes have agreed on it; default: `self.stop`.

        Raises:
            SystemExit: with code 0, a signal asked for the end; with another code, a handler that
                the process had ends it.
        """
        while self._due:
            number = self._due.pop(0)
            self._owners[number](number, None)
        if self.stop if stop is None else stop:
            raise SystemExit(0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if owner := self._owners.get(number):
            if not self.wait:
                owner(number, frame)
            elif number not in self._due:
                self._due.append(number)
                self.save = True
        elif number == getattr(signal, "SIGUSR1", None):
            if self.stop:
                # by the system, so that even a call that never comes back to Python ends
                self._set_stops(signal.SIG_DFL)
            self.save = True
        else:
            self.stop = True
            wake = getattr(signal, "SIGUSR1", None)
            if wake in self._before.keys() - self._owners.keys():
                self._set_stops(_ignore)
                # only the main thread may set handlers; a signal of ours makes it do so
                timer = threading.Timer(
                    _SECONDS_OF_ONE_REQUEST, self._wake, (threading.get_ident(), wake)
                )
                timer.daemon = True
                timer.start()
            else:
                self._set_stops(signal.SIG_DFL)
            if not self.wait:
                raise SystemExit(0)

    def _wake(self, thread: int, number: signal.Signals) -> None:
        # while there is a handler for it: the usual one ends the process
        with self._closing:
            if not self._closed:
                signal.pthread_kill(thread, number)

    def _set_stops(self, handler: Any) -> None:
        for number in self._before.keys() & {signal.SIGINT, signal.SIGTERM} - self._owners.keys():
            signal.signal(number, handler)


def _ignore(*_: object) -> None:
    """Do nothing; unlike `signal.SIG_IGN`, not even for a signal that is already on its way."""
