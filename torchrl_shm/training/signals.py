"""What Ctrl-C and a scheduler ask of a run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SECONDS_OF_ONE_REQUEST = 1.0


class Signals:
    """Turns signals into flags that a run looks at between updates.

    SIGINT and SIGTERM set `stop`, SIGUSR1 sets `save`. Another SIGINT or SIGTERM ends the process
    at once, unless it comes within a second: Slurm and `torchrun`, or a terminal and `torchrun`,
    both tell every process.

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
        self._stopped_at: float | None = None

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
            self.save = True
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self.stop = True
            if not self.wait:
                raise SystemExit(0)
        elif time.monotonic() - self._stopped_at >= _SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
