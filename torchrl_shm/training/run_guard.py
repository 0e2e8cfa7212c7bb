"""Keeps a run alive: what it takes to go on is saved in time, whatever ends the run."""

from __future__ import annotations

import copy
import math
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from torchrl.checkpoint import GlobalRNGState

from torchrl_shm.training.checkpoints import check_finite_state
from torchrl_shm.training.run_folder import RunFolder


class Stateful(Protocol):
    """What can be saved: modules, optimisers, schedules, collectors."""

    def state_dict(self) -> Any:
        """Everything that changes."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from what `state_dict` returned."""
        ...


class Interrupted(BaseException):
    """SIGINT or SIGTERM asked the run to end; no error, so that `except Exception` lets it pass."""


class RunGuard:
    """Remembers the state after every update and saves it in time.

    It is saved every `interval` updates, when the block ends, and when anything ends the run: an
    error, or a signal. A run that was stopped within an update goes on from the update before it,
    which `restore` repeats bit for bit, so nothing that was half done has to be saved.

    | signal | what happens |
    |---|---|
    | SIGINT (Ctrl-C), SIGTERM | saves and ends the process with code 0 |
    | one of them again | ends the process at once |
    | SIGUSR1 | saves after the update that is going on, and goes on |

    Handlers are set only in the main thread of a process, and only within the block.

    Args:
        run: the folder to save to; closed at the end of the block.
        parts: what to save, by name. The generators of torch, numpy and python, the metrics and the
            counters are saved as well.
        interval: updates between two checkpoints.

    Attributes:
        updates: number of updates done.
        frames: frames of these updates.
        seconds: time spent on them.

    Raises:
        ValueError: `interval` is not positive.

    Examples:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from torchrl_shm.training import RunFolder, RunGuard
        >>> path, net = mkdtemp(), torch.nn.Linear(2, 2)
        >>> with RunGuard(RunFolder(path), {"net": net}) as guard:
        ...     guard.end_update({"frames": 100, "seconds": 0.1, "return": 1.0})
        >>> again = RunGuard(RunFolder(path), {"net": net})
        >>> again.restore(), again.updates, again.frames
        (True, 1, 100)
    """

    def __init__(
        self, run: RunFolder, parts: Mapping[str, Stateful], *, interval: int = 20
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval} must be at least 1")
        self.run = run
        self.parts: dict[str, Stateful] = {**parts, "rng": GlobalRNGState()}
        self.interval = interval
        self.updates = 0
        self.frames = 0
        self.seconds = 0.0
        self._return: float | None = None
        self._state: dict[str, Any] | None = None
        self._signal: int | None = None
        self._save_soon = False
        self._busy = False
        self._handlers: dict[int, Any] = {}

    def restore(self) -> bool:
        """Go on from the newest checkpoint of the folder.

        Returns:
            Whether there was one.

        Raises:
            RuntimeError: every checkpoint is damaged, or they are of another recipe.
            pickle.UnpicklingError: a checkpoint holds more than data.
        """
        try:
            # parts move what they load to their own devices
            state = self.run.load_checkpoint()
        except FileNotFoundError:
            return False
        missing = [name for name in self.parts if name not in state]
        if missing:
            raise RuntimeError(
                f"the checkpoint of {self.run.path} lacks {missing}: it is of another recipe or of "
                "another version, and the run cannot go on"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.updates = int(state["updates"])
        self.frames = int(state["frames"])
        self.seconds = float(state["seconds"])
        self._return = state["return"]
        self.run.restore_metrics(state["metrics"])
        self.run.checkpoints.clean(after=self.frames)
        return True

    def end_update(self, row: Mapping[str, float]) -> None:
        """Log the row of an update, remember the state, and save it if it is time.

        Args:
            row: columns of `metrics.csv`; of these `frames`, `seconds` and `return` are read.

        Raises:
            FloatingPointError: the state is not finite; that of the update before stays in use.
            OSError: the disk is full or cannot be written to.
        """
        with self._undisturbed():
            self.run.log(row)
            self.updates += 1
            self.frames, self.seconds = int(row["frames"]), float(row["seconds"])
            if math.isfinite(row["return"]):
                self._return = float(row["return"])
            self._remember()
            if self._save_soon or self.updates % self.interval == 0:
                self.save()

    def save(self) -> None:
        """Write the state after the last update, unless that was done already.

        Raises:
            OSError: the disk is full or cannot be written to.
        """
        if self._state is None:
            return
        self._save_soon = False
        state = dict(self._state)
        state["metrics"] = self.run.metrics_csv(state.pop("metrics_rows"))
        self.run.checkpoints.save(state, step=state["frames"], metric=state["return"])

    def _remember(self) -> None:
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite_state(state)
        # copies: training goes on in the tensors themselves
        self._state = copy.deepcopy(state) | {
            "metrics_rows": len(self.run.metrics),
            "updates": self.updates,
            "frames": self.frames,
            "seconds": self.seconds,
            "return": self._return,
        }

    def __enter__(self) -> Self:
        try:
            with self._undisturbed():
                self._remember()
                self._set_handlers()
        except Interrupted as error:
            self.__exit__(type(error), error, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # from here on a first signal waits until all is saved, and a second one ends the process
        self._busy = True
        try:
            if error is None:
                self.save()
            else:
                self._save_what_is_left(error)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self.run.close()
        if error is None and self._signal is not None:
            raise SystemExit(0)

    def _set_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if (number := getattr(signal, name, None)) is not None:
                    self._handlers[number] = signal.signal(number, self._receive)

    def _save_what_is_left(self, error: BaseException) -> None:
        assert self._state is not None, "remembered when the block began"
        # not what the counters say: the update after it may be half done
        done = f"update {self._state['updates']}, frame {self._state['frames']}"
        try:
            self.save()
        except (OSError, FloatingPointError) as problem:
            _say(f"stopped after {done}, whose state could not be saved: {problem}")
            if _came_of_a_signal(error):
                raise SystemExit(1) from None
        else:
            _say(f"stopped after {done}, which is saved; go on with resume={self.run.path}")
            if _came_of_a_signal(error):
                raise SystemExit(0) from None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self._save_soon = True
            return
        self._end_at_once_on_signals()
        self._signal = number
        if not self._busy:
            raise Interrupted(signal.Signals(number).name)

    def _end_at_once_on_signals(self) -> None:
        for number in self._handlers.keys() & {signal.SIGINT, signal.SIGTERM}:
            signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def _undisturbed(self) -> Generator[None]:
        """Let a signal wait until a state or a file is whole."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._signal is not None:
            raise Interrupted(signal.Signals(self._signal).name)


def _came_of_a_signal(error: BaseException | None) -> bool:
    """Whether an error is `Interrupted`, or what somebody's clean-up on the way out made of it."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
