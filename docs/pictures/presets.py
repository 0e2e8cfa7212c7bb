"""The listing of "All results": which presets have results, of which memories, and where.

PYTHONPATH=. python docs/pictures/presets.py
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

from docs.pictures.hyperparameters import merge_levels
from torchrl_shm.configs import ENVS, TUNED

RESULTS = Path(__file__).parents[1] / "results"
# raw data, and the page about them as a link of the page of all results
SOURCES = {
    "paper_credit/summary.csv": "[Visual Match and Key-to-Door](credit_presets.md)",
    "paper_popgym/summary.csv": "[POPGym](popgym_presets.md)",
    "paper_meta/summary.csv": "[Wind and Point Robot](meta_presets.md)",
    "memories/wind": "[All memories on Wind](memories.md), a quarter of the frames",
    "gym/pendulum.csv": "[Hidden velocities](gym.md)",
    "tasks/first_runs.csv": "[First runs](first_runs.md)",
}


def read(path: Path) -> list[dict[str, str]]:
    """One record per run."""
    if path.is_dir():
        return [json.loads(file.read_text()) for file in sorted(path.glob("*/summary.json"))]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def get_preset(run: dict[str, str]) -> str:
    """The choice on the command line; a task of gymnasium has a name of its own besides."""
    return re.findall(r" env=(\S+)|$", run.get("command", ""))[0] or run["env"]


def count_seeds() -> dict[tuple[str, str], Counter[str]]:
    """Runs of each memory, by preset and raw data."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for source in SOURCES:
        for run in read(RESULTS / source):
            found.setdefault((get_preset(run), source), Counter())[run["memory"]] += 1
    return found


def describe(seeds: Counter[str]) -> str:
    """Memories by their number of seeds."""
    groups: dict[int, list[str]] = {}
    for memory, number in seeds.items():
        groups.setdefault(number, []).append(f"`{memory}`")
    return "; ".join(f"{', '.join(groups[n])}: {n}" for n in sorted(groups, reverse=True))


def make_listing() -> str:
    """A row for each preset and source, and the presets without any."""
    found = count_seeds()
    presets = Counter(source for _, source in found)
    lines = ["| preset | memories: seeds | page | raw data |", "|---|---|---|---|"]
    for preset in ENVS:
        for (name, source), seeds in found.items():
            if name == preset:
                # a site has files to offer, and no folders
                raw = f"[`{source}`]({source})" if source.endswith(".csv") else f"`{source}/`"
                # pages about several presets have a section of each
                anchor = f".md#{preset})" if presets[source] > 1 else ".md)"
                page = SOURCES[source].replace(".md)", anchor)
                lines.append(f"| `{preset}` | {describe(seeds)} | {page} | {raw} |")
    known = {name for name, _ in found}
    tuned = {name for values in TUNED.values() for name in values}
    missing = merge_levels([name for name in ENVS if name in tuned - known])
    return "\n".join([*lines, "", f"No results yet: {', '.join(missing)}.", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(make_listing())
