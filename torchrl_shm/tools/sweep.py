"""Show what is finished, running, stopped and missing of a sweep.

torchrl-shm sweep status multirun/ppo_shm/2026-01-01/12-00-00
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from torchrl_shm.tools._parser import Parser
from torchrl_shm.tools._runs import describe, progress, read_summary
from torchrl_shm.training.run_folder import is_running

_FILE = "multirun.yaml"


def main(arguments: Sequence[str]) -> dict[str, int]:
    """Print a line for every job of a sweep, and how many there are of each kind.

    Args:
        arguments: the options.

    Returns:
        Number of jobs that are finished, running, stopped and missing.

    Raises:
        FileNotFoundError: the folder is not that of a sweep.
        ValueError: its `multirun.yaml` cannot be read.
    """
    parser = Parser(
        "torchrl-shm sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=["status"])
    parser.add_argument("folder", type=Path, help="of the sweep, with multirun.yaml")
    options = parser.parse_args(arguments)
    states: Counter[str] = Counter(finished=0, running=0, stopped=0, missing=0)
    for number, job in enumerate(_jobs(options.folder)):
        # a job that was stopped before its run began leaves no more than a folder
        runs = sorted(options.folder.glob(f"{number}_*/config.yaml"))
        state, text = _state(runs[0].parent) if runs else ("missing", "")
        states[state] += 1
        print(f"{number:>4}  {' '.join(job):<50}  {state:<8}  {text}".rstrip())
    print(", ".join(f"{count} {state}" for state, count in states.items()))
    return dict(states)


def _jobs(folder: Path) -> list[tuple[str, ...]]:
    """The values in which the jobs of a sweep differ, in their order."""
    path = folder / _FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name the folder of a sweep")
    try:
        given = OmegaConf.load(path).hydra.overrides.task
        overrides = OverridesParser.create().parse_overrides(list(given))
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    # as Hydra's sweeper does: what is given again takes the place of the first, and the last place
    # changes fastest
    values: dict[str, list[str]] = {}
    for x in overrides:
        swept = list(x.sweep_string_iterator()) if x.is_sweep_override() else []
        values[x.get_key_element()] = swept
    choices = [[f"{key}={y}" for y in swept] for key, swept in values.items() if swept]
    return list(itertools.product(*choices))


def _state(folder: Path) -> tuple[str, str]:
    if (summary := read_summary(folder)) is not None:
        return "finished", describe(summary)
    return ("running" if is_running(folder) else "stopped"), progress(folder)
