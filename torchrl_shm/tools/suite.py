"""Run a set of runs: what is missing is started, what was stopped goes on, what is finished stays.

torchrl-shm suite status paper_credit
torchrl-shm suite run paper_credit --jobs 2
torchrl-shm suite collect paper_credit

`run` starts one process with one thread for each run, prints a table whenever one ends, and
collects. Ctrl-C, or a signal of a scheduler, lets the running ones save a checkpoint; the same
command goes on. `collect` copies what is to be kept into the folder of results: of each finished
run its metrics, at most 200 rows, and a row of `summary.csv`. What was collected is finished, on
whatever machine; delete its row to make it again.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from torchrl_shm.configs import SUITES, SuiteRun, load_config
from torchrl_shm.configs.saved import shared_command
from torchrl_shm.tools._parser import Parser, count
from torchrl_shm.tools._runs import describe, last_row, progress, read_summary
from torchrl_shm.training.files import write_atomically
from torchrl_shm.training.run_folder import is_running

_ROWS = 200
_COLUMNS = (
    "run", "env", "memory", "variant", "seed", "frames", "eval_return", "eval_success", "seconds",
    "commit", "command",
)  # fmt: skip
# what a run needs no second thread for, whichever library would start one
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def main(arguments: Sequence[str]) -> None:
    """Run, show or collect a suite.

    Args:
        arguments: the options.

    Raises:
        FileNotFoundError: a recipe is not there.
        ValueError: there is no such suite, or a run failed.
    """
    parser = Parser(
        "torchrl-shm suite", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=["run", "status", "collect"])
    parser.add_argument("suite", help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--jobs", type=count, default=1, help="processes at a time; default: 1")
    parser.add_argument("--only", default="", help="runs whose names hold this text")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="folder of what is collected"
    )
    parser.add_argument(
        "--recipes", type=Path, default=Path("recipes"), help="folder of the files that make runs"
    )
    options = parser.parse_args(arguments)
    if options.suite not in SUITES:
        raise ValueError(f"there is no suite {options.suite!r}; choose one of {', '.join(SUITES)}")
    runs = [run for run in SUITES[options.suite] if options.only in run.name]
    if not runs:
        raise ValueError(f"no run of {options.suite} has {options.only!r} in its name")
    folder, results = options.runs / options.suite, options.results / options.suite
    if options.action == "run":
        for name in {run.recipe for run in runs}:
            if not (path := options.recipes / f"{name}.py").is_file():
                raise FileNotFoundError(f"{path} is not there; name its folder with --recipes")
        failed = _run(runs, folder, results, options)
        if failed:
            raise ValueError(f"{', '.join(failed)} failed: see the file `log` of each run's folder")
    elif options.action == "collect":
        _collect(runs, folder, results)
    print(_table(runs, folder, results))


def _run(runs: list[SuiteRun], folder: Path, results: Path, options: Any) -> list[str]:
    """Start and wait; returns the names of what failed."""
    finished = _finished(runs, folder, results)
    waiting = [run for run in runs if run.name not in finished]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    with _stopped_by_signals(running) as stopped:
        while (waiting and not stopped) or running:
            while waiting and not stopped and len(running) < options.jobs:
                run = waiting.pop(0)
                if (folder / run.name).exists() and is_running(folder / run.name):
                    print(f"{run.name} is running already", flush=True)
                    continue
                running[run.name] = _start(run, folder / run.name, options.recipes)
                if stopped:
                    # the signal came while it was started
                    running[run.name].send_signal(signal.SIGTERM)
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if read_summary(folder / name) is not None:
                    _collect(runs, folder, results)
                elif not stopped:
                    failed.append(name)
                print(_table(runs, folder, results), flush=True)
    return failed


def _start(run: SuiteRun, folder: Path, recipes: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    where = ["experiment.resume=auto", f"hydra.run.dir={folder}"]
    commit = folder / "commit"
    if not commit.exists():
        commit.write_text(_commit(recipes) + "\n")
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(recipes / f"{run.recipe}.py"), *run.overrides, *where],
            stdout=log,
            stderr=log,
            env=os.environ | _ONE_THREAD,
            # a terminal sends its Ctrl-C to all processes; here one of them hands it on
            start_new_session=True,
        )


def _commit(recipes: Path) -> str:
    command = ["git", "-C", str(recipes.absolute()), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, start_new_session=True
        )
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _commit_of(folder: Path) -> str:
    path = folder / "commit"
    return path.read_text().strip() if path.exists() else "unknown"


@contextmanager
def _stopped_by_signals(running: dict[str, subprocess.Popen[bytes]]) -> Generator[list[int]]:
    """Hand signals on to the runs, which save and end; yields the signals that came."""
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        for process in running.values():
            process.send_signal(signal.SIGTERM)

    # a closed terminal sends the last one, where there is such a signal
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    before = {number: signal.signal(number, stop) for number in dict.fromkeys(numbers)}
    try:
        yield came
    finally:
        # after an error: no run outlives the suite
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _table(runs: list[SuiteRun], folder: Path, results: Path) -> str:
    """A line for every run, and what is left."""
    finished = _finished(runs, folder, results)
    lines: list[str] = []
    seconds: dict[str, list[float]] = {}
    left: list[str] = []
    for run in runs:
        if row := finished.get(run.name):
            lines.append(f"{run.name:<50} {describe(row)}")
            seconds.setdefault(run.env, []).append(float(row["seconds"]))
        else:
            lines.append(f"{run.name:<50} {progress(folder / run.name)}")
            left.append(run.env)
    known = [x for values in seconds.values() for x in values]
    total = f"{len(runs) - len(left)} of {len(runs)} done"
    if left and known:
        hours = sum(median(seconds.get(env, known)) for env in left) / 3600
        total += f", about {hours:.1f} hours of one core left"
    commits = {row["commit"] for row in finished.values()}
    if len(commits) > 1:
        total += f"\nfinished runs are of several commits: {', '.join(sorted(commits))}"
    return "\n".join([*lines, total])


def _finished(runs: list[SuiteRun], folder: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Rows of `summary.csv` by run: of what is in the folder, and of what was collected before."""
    rows = _collected(results)
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        here = folder / run.name
        summary, last = read_summary(here), last_row(here)
        if summary is None or last is None:
            if run.name in rows:
                found[run.name] = rows[run.name]
            continue
        config = OmegaConf.to_container(load_config(here))
        assert isinstance(config, dict)
        found[run.name] = {
            "run": run.name, "variant": run.variant, "seconds": last["seconds"],
            "commit": _commit_of(here), "command": shared_command(config["command"]),
            **{key: x for key, x in summary.items() if key in _COLUMNS and key != "seconds"},
        }  # fmt: skip
    return found


def _collect(runs: list[SuiteRun], folder: Path, results: Path) -> None:
    """Copy what is to be kept of finished runs; what was collected before and is gone stays."""
    kept = _collected(results) | _finished(runs, folder, results)
    for run in runs:
        if read_summary(folder / run.name) is not None:
            _write(results / f"{run.name}.csv", *_thinned(folder / run.name / "metrics.csv"))
    rows = [kept[name] for name in sorted(kept)]
    if rows:
        table = [[row.get(key, "") for key in _COLUMNS] for row in rows]
        _write(results / "summary.csv", list(_COLUMNS), table)


def _collected(results: Path) -> dict[str, dict[str, Any]]:
    """Rows of `summary.csv` by run."""
    path = results / "summary.csv"
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def _thinned(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and at most 200 rows of a file, evenly spread, the first and the last among them."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    step = -(-len(rows) // _ROWS)
    # the first says with what a run began, whatever the step
    return header, rows[:1] + rows[::-1][::step][::-1][1:]


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
