"""What Ctrl-C and a scheduler ask of a run."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Signals:
    """Turns signals into flags that a run looks at between updates.

    SIGINT and SIGTERM set `stop`, SIGUSR1 sets `save`. A second SIGINT or SIGTERM ends the process
    at once. Handlers are set only in the main thread of a process, and only within the block.

    Attributes:
        stop: whether the run should end.
        save: whether the state should be saved after the present update.
        wait: whether something is half done, so that the run has to look at `stop` by itself;
            where false, SIGINT and SIGTERM raise SystemExit.
    """

    def __init__(self) -> None:
        self.stop = False
        self.save = False
        self.wait = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                # Windows has no SIGUSR1
                if (number := getattr(signal, name, None)) is not None:
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

    def exit_if_asked(self) -> None:
        """Raise SystemExit with code 0 if a signal asked for the end; all must be saved."""
        if self.stop:
            raise SystemExit(0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self.save = True
            return
        for again in self._before.keys() & {signal.SIGINT, signal.SIGTERM}:
            signal.signal(again, signal.SIG_DFL)
        self.stop = True
        if not self.wait:
            raise SystemExit(0)
