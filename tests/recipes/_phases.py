"""A run of the recipe that says in which phase it is, so that it can be stopped there.

python tests/recipes/_phases.py <file that gets the phases> env=wind ...
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

Phase = Literal["compilation", "collection", "update", "evaluation"]
"""The recipe compiles nothing itself; what is compiled are numba's kernels at their first use."""

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Entry:
    phase: str
    start: float


def announce(file: Path) -> None:
    """Write a line to `file` whenever the recipe enters a phase, from now on in this process."""
    from numba.core.dispatcher import Dispatcher

    import torchrl_shm.training
    from recipes import ppo_shm
    from torchrl_shm.training import RolloutCollector

    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def say(phase: str) -> None:
        os.write(descriptor, f"{phase} {time.monotonic()}\n".encode())

    def within(phase: Phase, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            say(phase)
            result = function(*args, **options)
            say(f"after-{phase}")
            return result

        return wrapper

    iterate = RolloutCollector.__iter__

    def batches(self: RolloutCollector) -> Iterator[Any]:
        iterator = iterate(self)
        while True:
            say("collection")
            batch = next(iterator, None)
            if batch is None:
                say("after-collection")
                return
            say("update")
            yield batch

    RolloutCollector.__iter__ = batches
    for module in (ppo_shm, torchrl_shm.training):
        module.evaluate = within("evaluation", module.evaluate)  # pyright: ignore
    Dispatcher.compile = within("compilation", Dispatcher.compile)


def entries(file: Path) -> list[Entry]:
    """The phases entered so far."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Entry(phase, float(start)) for phase, start in (line.split() for line in lines)]


def lengths(file: Path) -> dict[str, list[float]]:
    """Seconds of every phase of a finished run."""
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for entry, following in pairwise(entries(file)):
        if entry.phase in found:
            found[entry.phase].append(following.start - entry.start)
    return found


if __name__ == "__main__":
    import runpy

    announce(Path(sys.argv[1]))
    recipe = str(Path(__file__).parents[2] / "recipes" / "ppo_shm.py")
    sys.argv = [recipe, *sys.argv[2:]]
    runpy.run_path(recipe, run_name="__main__")
