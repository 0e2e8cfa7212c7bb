"""Copies of this process to stop and kill; a process of its own costs seconds of imports."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Protocol, Self


class Running(Protocol):
    """A process that can get a signal."""

    @property
    def pid(self) -> int: ...
    def is_running(self) -> bool: ...
    def signal(self, number: int) -> None: ...
    def wait(self, seconds: float = ...) -> int: ...
    def text(self) -> str: ...


class Child:
    """A fork that calls a function and ends, with code 0 if nothing was raised.

    Args:
        function: what to call.
        output: file that gets what the fork prints.
    """

    def __init__(self, function: Callable[[], object], output: Path = Path(os.devnull)) -> None:
        self.output = output
        self.process = get_context("fork").Process(target=self._call, args=(function,))

    def _call(self, function: Callable[[], object]) -> None:
        # a fork would fork its own workers, which keep the folder of a run open when it is killed
        set_start_method(None, force=True)
        file = os.open(self.output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        # not those of pytest, which nobody would read
        sys.stdout = sys.stderr = open(file, "w", buffering=1)  # noqa: SIM115
        function()

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            # of threads, which a fork does not have; torch and numba are told to start none
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        return self.process.is_alive()

    def wait(self, seconds: float = 60) -> int:
        """The exit code; that of a signal is negative."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"not done after {seconds} s: {self.text()}"
        return code

    def text(self) -> str:
        return self.output.read_text()


def python(folder: Path, *arguments: str, paths: Iterable[Path] = ()) -> None:
    """What `python` does in a folder with a script or `-m module`; for a fork, which it changes."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), *map(str, paths)]
    sys.argv = [*arguments]
    if arguments[0] == "-m":
        sys.argv = [*arguments[1:]]
        # another test may have imported it
        sys.modules.pop(f"{arguments[1]}.__main__", None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(folder / arguments[0]), run_name="__main__")


@contextmanager
def ranks(function: Callable[[], object], folder: Path, count: int = 2) -> Iterator[list[Child]]:
    """Forks that find each other as those of torchrun do; each prints to a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free, ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

        def call(rank: int) -> None:
            os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
            function()

        yield [
            stack.enter_context(Child(partial(call, rank), folder / f"rank{rank}.txt"))
            for rank in range(count)
        ]


def wait_until(
    true: Callable[[], object], running: Running | None = None, *, seconds: float = 60
) -> None:
    """Look every few milliseconds; fail rather than hang, and at once if a process has ended."""
    limit = time.monotonic() + seconds
    while not true():
        if running is not None and not running.is_running():
            assert true(), running.text()
            return
        assert time.monotonic() < limit, f"not so after {seconds} s"
        time.sleep(0.002)
