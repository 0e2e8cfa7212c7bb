"""Compare our environments with the originals behind gymnasium's SyncVectorEnv, on one thread.

python -m tests.benchmarks.envs
python -m tests.benchmarks.envs --only RepeatPreviousEasy,KeyToDoor --json out.json
python -m tests.benchmarks.envs --device cuda --batches 16384
python -m tests.benchmarks.envs --from docs/results/tasks/speed.json

A step is `step_and_maybe_reset` with actions drawn beforehand, on both sides. That both are the
same task is what `tests/envs` proves; here every family first plays a few episodes against its
original. Tasks whose original cannot be installed (grids, T-Maze, navigation) have no ratio.
`--from` measures nothing and makes the table anew, from numbers that `--json` has written.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks._measure import table, wait_until_idle, write_numbers
from torchrl_shm import envs
from torchrl_shm.envs import popgym

FAMILIES = [name.removesuffix("Env") for name in popgym.__all__ if name.endswith("Env")]
FAMILIES.remove("POPGym")
OTHERS = ("KeyToDoor", "VisualMatch", "TMaze", "MemoryLength", "Wind", "PointRobot")
# steps per second of originals that cannot be installed any more, recorded elsewhere: one
# environment of the released code in a plain loop; the others were not recorded
RECORDED = {"KeyToDoor": 10_000, "VisualMatch": 12_000, "Wind": 75_000}
RECORDED_COLUMN = "original, recorded elsewhere"
# how many times as fast as the original an environment is meant to be, by batch
GOALS = {64: 5, 1024: 50}


def cases() -> list[str]:
    """Everything that is timed, by name."""
    return [*(f"{name}{level}" for name in FAMILIES for level in ("Easy", "Hard")), *OTHERS]


def make(name: str, batch: int, device: str) -> Any:
    """Our environment."""
    if name in OTHERS:
        return getattr(envs, f"{name}Env")(batch, seed=0, device=device)
    family, level = (name.removesuffix(x) for x in ("Easy", "Hard")), name[-4:].lower()
    family = next(x for x in family if x != name)
    return getattr(popgym, f"{family}Env")(batch, level=level, seed=0, device=device)


def ours(name: str, batch: int, device: str, seconds: float) -> float:
    """Steps per second, over all environments."""
    return batch / _seconds(stepper(make(name, batch, device)), device, seconds)


def stepper(env: Any) -> Callable[[], None]:
    """Step an environment of TorchRL with actions drawn beforehand."""
    actions = [env.full_action_spec["action"].rand() for _ in range(16)]
    state: dict[str, Any] = {"data": env.reset(), "t": 0}

    def step() -> None:
        state["t"] += 1
        data = state["data"].set("action", actions[state["t"] % 16])
        _, state["data"] = env.step_and_maybe_reset(data)

    return step


def original(name: str, batch: int, seconds: float) -> float:
    """The same of the package's environment, wrapped in the same way."""
    from gymnasium.vector import SyncVectorEnv
    from popgym import envs as package
    from popgym.wrappers import Antialias, DiscreteAction, Flatten, PreviousAction

    def one() -> Any:
        env = Flatten(Antialias(PreviousAction(getattr(package, name)())))
        return DiscreteAction(env) if hasattr(env.action_space, "nvec") else env

    vector = SyncVectorEnv([one] * batch)
    vector.reset(seed=0)
    actions = [vector.action_space.sample() for _ in range(16)]
    state = {"t": 0}

    def step() -> None:
        state["t"] += 1
        vector.step(actions[state["t"] % 16])

    return batch / _seconds(step, "cpu", seconds)


def _seconds(step: Callable[[], None], device: str, seconds: float) -> float:
    """Median over slices of the time of a step; whole slices, so that resets count."""
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    step()
    begin = time.perf_counter()
    step()
    sync()
    once = max(1e-6, time.perf_counter() - begin)
    count = max(1, int(seconds / 5 / once))
    slices: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count):
            step()
        sync()
        slices.append((time.perf_counter() - begin) / count)
    return median(slices)


def check(name: str) -> None:
    """Refuse to time what is not the same task."""
    from tests.envs.popgym._originals import match

    family = name.removesuffix("Easy").removesuffix("Hard")
    match(family, name.removeprefix(family).lower(), 2, 0.5, 1e-6)


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 1024])
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("--json", type=Path, help="write the numbers, and the table beside them")
    parser.add_argument("--from", dest="recorded", type=Path, help="numbers to make the table from")
    arguments = parser.parse_args()
    if arguments.recorded:
        text = report(json.loads(arguments.recorded.read_text()))
        print(text)
        arguments.recorded.with_suffix(".md").write_text(text + "\n")
        return
    torch.set_num_threads(1)
    # gymnasium's advice to its own authors
    warnings.simplefilter("ignore")
    names = arguments.only.split(",") if arguments.only else cases()
    compared = [name for name in names if name not in OTHERS]
    for name in compared:
        check(name)
    print(f"the same tasks: {', '.join(compared)}")
    print(f"one thread, {arguments.device}, others used {wait_until_idle(arguments.wait):.0%}")

    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"task": name}
        for batch in arguments.batches:
            row[f"ours B={batch}"] = ours(name, batch, arguments.device, arguments.seconds)
            if name in compared and arguments.device == "cpu":
                theirs = original(name, batch, arguments.seconds)
                row[f"original B={batch}"] = theirs
                row[f"ratio B={batch}"] = row[f"ours B={batch}"] / theirs
        rows.append(row)
        print(row, flush=True)
    text = report(rows)
    print(text)
    write_numbers(arguments.json, rows, text)


def report(rows: list[dict[str, Any]]) -> str:
    """Make the table, and below it say what misses its goal."""
    keys = list(max(rows, key=len))
    cells = [
        [
            *(_cell(key, row.get(key, "")) for key in keys),
            _cell("", float(RECORDED[row["task"]])) if row["task"] in RECORDED else "",
        ]
        for row in rows
    ]
    parts = [table([*keys, RECORDED_COLUMN], cells)]
    for batch, goal in GOALS.items():
        key = f"ratio B={batch}"
        if any(key in row for row in rows):
            missed = _missed(rows, key, goal)
            names = ", ".join(f"{name} ({_cell(key, ratio)})" for name, ratio in missed.items())
            parts.append(
                f"Less than {goal} times the original at `B = {batch}`: {names or 'none'}."
            )
    return "\n\n".join(parts)


def _missed(rows: list[dict[str, Any]], key: str, goal: float) -> dict[str, float]:
    """Lowest ratio by task, of tasks below the goal; a family stands for all of its levels."""
    missed: dict[str, float] = {}
    for row in rows:
        family = next((name for name in FAMILIES if row["task"] in _levels(name)), row["task"])
        levels = [other for other in rows if other["task"] in (row["task"], *_levels(family))]
        below = [other for other in levels if other.get(key, math.inf) < goal]
        if row in below:
            name = family if len(below) == len(levels) else row["task"]
            missed[name] = min(row[key], missed.get(name, math.inf))
    return missed


def _levels(family: str) -> list[str]:
    return [f"{family}{level}" for level in ("Easy", "Medium", "Hard")]


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if not key.startswith("ratio"):
        return f"{value:,.0f}"
    # downwards, so that nothing seems to reach what it does not
    return f"{math.floor(value)}" if value >= 10 else f"{math.floor(value * 10) / 10:.1f}"


if __name__ == "__main__":
    main()
