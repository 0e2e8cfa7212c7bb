"""A recipe as Hydra calls it: in the process of the command, or in one that a launcher started."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra_zen.wrapper import Zen
from omegaconf import OmegaConf

from torchrl_shm.configs.mistakes import are_explained, explain_mistakes, in_words, refuse
from torchrl_shm.configs.saved import remove_empty, resumed_config

_STOPS = (signal.SIGINT, signal.SIGTERM)


class RecipeTask(Zen[..., Any]):
    """Calls a recipe's `main`, with the configuration of an old run if that is to be resumed.

    Launchers of sweeps send it to other processes. There it is not what pickle makes of a function
    of `__main__`, but what that process finds when it reads the script as the command did, with all
    names that the script adds to the command line.
    """

    def __call__(self, cfg: Any, /) -> Any:
        hydra = HydraConfig.get()
        names = {name: hydra.runtime.choices[name] for name in ("env", "memory")}
        if actor := hydra.runtime.choices.get("network/actor_memory"):
            names["memory"] += f"_actor_{actor}"
        experiment = {"run_dir": hydra.runtime.output_dir, "names": names}
        for key, value in experiment.items():
            if cfg.experiment[key] is None:
                OmegaConf.update(cfg, f"experiment.{key}", value)
        OmegaConf.update(cfg, "command", _command(), force_add=True)
        try:
            return super().__call__(resumed_config(cfg))
        except Exception as error:
            remove_empty(Path(hydra.runtime.output_dir))
            # here, for Hydra would print all values of the command line before it
            if hydra.mode is not RunMode.MULTIRUN:
                refuse(error)
            # a sweep goes on, and gets errors of other processes without cause and traceback
            elif mistake := in_words(error):
                raise mistake from None
            elif _in_job:
                traceback.print_exc()
            raise

    def __reduce__(self) -> tuple[Callable[..., RecipeTask], tuple[Any, ...]]:
        return _read_again, (tuple(sys.argv), tuple(sys.path), are_explained())


class _Read(BaseException):
    """Ends the reading of a script where its command would begin to run."""

    def __init__(self, task: RecipeTask) -> None:
        self.task = task


_reading = False
_in_job = False


def end_reading(task: RecipeTask) -> None:
    """Hand a task to the process that reads the script to get it; do nothing elsewhere.

    Args:
        task: the recipe of the script.
    """
    if _reading:
        raise _Read(task)


# a process may get several jobs of a sweep
@cache
def _read_again(argv: tuple[str, ...], path: tuple[str, ...], explained: bool) -> RecipeTask:
    """Read the script of a command in another process."""
    global _reading, _in_job
    sys.argv[:], sys.path[:] = argv, path
    explain_mistakes(explained)
    script = Path(argv[0])
    # where classes of the script are found by name
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(script)
    _reading = _in_job = True
    try:
        exec(compile(script.read_bytes(), script, "exec"), vars(module))
    except _Read as read:
        return read.task
    finally:
        _reading = False
    raise RuntimeError(f"{script} does not reach run_recipe when it is read in another process")


@contextmanager
def jobs_end_with_this() -> Generator[None]:
    """Hand SIGINT and SIGTERM on to the processes of a sweep, whose runs save, and end by it.

    Left alone, joblib answers Ctrl-C by killing its processes, whatever they are about to save. In
    a process without jobs of its own nothing happens here: a run has its own handlers.
    """
    if not any(argument.startswith("hydra/launcher=") for argument in sys.argv):
        yield
        return

    def stop(number: int, _: object) -> None:
        # the other one: where the first has reached them already, it would end them at once
        for process in multiprocessing.active_children():
            os.kill(process.ident or 0, _STOPS[1 - _STOPS.index(number)])
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    before = [signal.signal(number, stop) for number in _STOPS]
    try:
        yield
    finally:
        for number, handler in zip(_STOPS, before, strict=True):
            signal.signal(number, handler)


def _command() -> str:
    """The command that repeats the run."""
    script = Path(sys.argv[0])
    inside = script.absolute().is_relative_to(Path.cwd())
    shown = os.path.relpath(script) if inside else f"recipes/{script.name}"
    given = [x for x in HydraConfig.get().overrides.task if not x.startswith("experiment.resume=")]
    return shlex.join(["python", shown, *given])
