"""A recipe as Hydra calls it: in the process of the command, or in one that a launcher started."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
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
from torchrl_shm.training import ranks

# seconds for a run to end by the signal that has ended the process which started it
_PATIENCE = 30
# held while a job runs
_job = threading.Lock()


class RecipeTask(Zen[..., Any]):
    """Calls a recipe's `main`, with the configuration of an old run if that is to be resumed.

    Launchers of sweeps send it to other processes. There it is not what pickle makes of a function
    of `__main__`, but what that process finds when it reads the script as the command did, with all
    names that the script adds to the command line.
    """

    def __call__(self, cfg: Any, /) -> Any:
        """Run a job.

        Args:
            cfg: what Hydra has composed, without its own values.

        Returns:
            What the recipe returns.

        Raises:
            SystemExit: a signal has stopped the run; or what is wrong with the command line of a
                single run was explained.
            Mistake: the same in a sweep, whose other jobs go on.
        """
        if _parent not in (None, os.getppid()):
            os._exit(0)
        hydra = HydraConfig.get()
        names = {name: hydra.runtime.choices[name] for name in ("env", "memory")}
        if names["env"] == "gym" and not OmegaConf.is_missing(cfg.env, "id"):
            # `env=gym` is many tasks, and the module that registers one is no part of its name
            names["env"] = str(cfg.env.id).rpartition(":")[2]
        if actor := hydra.runtime.choices.get("network/actor_memory"):
            names["memory"] += f"_actor_{actor}"
        experiment = {"run_dir": hydra.runtime.output_dir, "names": names}
        for key, value in experiment.items():
            if cfg.experiment[key] is None:
                OmegaConf.update(cfg, f"experiment.{key}", value)
        OmegaConf.update(cfg, "command", _command(), force_add=True)
        try:
            with _job:
                ranks.join()
                if ranks.num_ranks() > 1 and hydra.mode is RunMode.MULTIRUN:
                    raise ValueError("a sweep (-m) cannot be started by torchrun; start run by run")
                return super().__call__(resumed_config(cfg))
        except Exception as error:
            remove_empty(Path(hydra.runtime.output_dir))
            # here, for Hydra would print all values of the command line before it
            if hydra.mode is not RunMode.MULTIRUN:
                refuse(error)
            # a sweep goes on, and gets errors of other processes without cause and traceback
            elif mistake := in_words(error):
                raise mistake from None
            elif _parent is not None:
                traceback.print_exc()
            raise

    def __reduce__(self) -> tuple[Callable[..., RecipeTask], tuple[Any, ...]]:
        return _read_again, (tuple(sys.argv), tuple(sys.path), are_explained())


class _Read(BaseException):
    """Ends the reading of a script where its command would begin to run."""

    def __init__(self, task: RecipeTask) -> None:
        self.task = task


_reading = False
# the process that has started this one, if that was done for a job
_parent: int | None = None


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
    global _reading, _parent
    _parent = os.getppid()
    threading.Thread(target=_end_with, args=(_parent,), daemon=True).start()
    sys.argv[:], sys.path[:] = argv, path
    explain_mistakes(explained)
    script = Path(argv[0])
    # where classes of the script are found by name
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(script)
    _reading = True
    try:
        exec(compile(script.read_bytes(), script, "exec", dont_inherit=True), vars(module))
    except _Read as read:
        return read.task
    finally:
        _reading = False
    raise RuntimeError(f"{script} does not reach run_recipe when it is read in another process")


def _end_with(parent: int) -> None:
    """End this process when the one that has started it is gone; a run that goes on is saved.

    Processes of joblib would else wait for jobs that never come.
    """
    while os.getppid() == parent:
        time.sleep(1)
    # a signal to all of them has reached the run, too, and a second one would not let it save
    if not _job.acquire(timeout=_PATIENCE):
        os.kill(os.getpid(), signal.SIGTERM)
        _job.acquire()
    # here, where no other job can begin
    os._exit(0)


def _command() -> str:
    """The command that repeats the run."""
    script = Path(sys.argv[0])
    inside = script.absolute().is_relative_to(Path.cwd())
    shown = os.path.relpath(script) if inside else f"recipes/{script.name}"
    given = [x for x in HydraConfig.get().overrides.task if not x.startswith("experiment.resume=")]
    return shlex.join(["python", shown, *given])
