"""What pages of results say of each preset: every seed, commands, and values beside the defaults.

PYTHONPATH=. python docs/pictures/sheets.py
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docs.pictures.hyperparameters import defaults, show
from docs.pictures.presets import RESULTS, SOURCES, get_preset, read
from torchrl_shm.configs import PPO, TUNED
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import Experiment

Run = dict[str, Any]
# of runs whose raw data have no command
COMMANDS = {
    # as the preset was then
    "memories/wind": "python recipes/ppo_shm.py env=wind network.encoder=auto "
    "algo.lmbda=0.95 experiment.num_envs=256 experiment.total_frames=800000 memory={memory} "
    "experiment.seed={seed}",
}
DEFAULTS = {
    name: value
    for group in (("algo", PPO), ("experiment", Experiment), ("network", make_actor_critic))
    for name, value, _ in defaults(*group)
}


def load() -> dict[str, dict[str, list[Run]]]:
    """Runs by raw data and preset, each with its command."""
    found: dict[str, dict[str, list[Run]]] = {}
    for source in SOURCES:
        runs = [dict(run) for run in read(RESULTS / source)]
        for run in sorted(runs, key=lambda run: natural(get_preset(run))):
            run["seed"] = int(run["seed"])
            run.setdefault("command", COMMANDS.get(source, "").format(**run))
            found.setdefault(source, {}).setdefault(get_preset(run), []).append(run)
    return found


def natural(name: str) -> tuple[str, int]:
    """So that 100 comes before 250."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


def group_by_memory(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of each memory in the order of their seeds; the best memory first."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups.setdefault(run["memory"], []).append(run)
    return dict(sorted(groups.items(), key=lambda x: -mean(scores(x[1], "eval_return"))))


def scores(runs: Iterable[Run], column: str) -> list[float]:
    """Final scores, none where a task has no such score."""
    return [float(run[column]) for run in runs if run.get(column) not in (None, "")]


def mean(values: list[float]) -> float:
    """Mean of numbers that are there."""
    return sum(values) / len(values)


def show_seeds(seeds: list[int]) -> str:
    """Seeds that follow each other as a range."""
    first, last = seeds[0], seeds[-1]
    whole = len(seeds) > 2 and seeds == [*range(first, last + 1)]
    return f"{first} to {last}" if whole else ", ".join(map(str, seeds))


def list_scores(runs: list[Run]) -> list[str]:
    """Mean and final score of each seed."""
    groups = group_by_memory(runs)
    several = max(map(len, groups.values())) > 1
    head = ["memory", "seeds" if several else "seed"]
    rows = [[f"`{name}`", show_seeds([run["seed"] for run in x])] for name, x in groups.items()]
    for column, title in (("eval_return", "return"), ("eval_success", "success")):
        if not (every := scores(runs, column)):
            continue
        # shares have three digits, and returns as many where they are small
        digits = 1 if max(map(abs, every)) >= 10 else 3
        head.append(f"{title}: mean (each seed)" if several else title)
        for row, group in zip(rows, groups.values(), strict=True):
            values = scores(group, column)
            shown = [f"{x:,.{digits}f}" for x in values]
            each = "all" if len({*shown}) == 1 else ", ".join(shown)
            row.append(f"{mean(values):,.{digits}f}" + f" ({each})" * (len(values) > 1))
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def list_commands(runs: list[Run]) -> list[str]:
    """One command for all memories that have the same seeds."""
    found: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for name, group in group_by_memory(runs).items():
        for run in group:
            chosen = {f"memory={name}", f"experiment.seed={run['seed']}"}
            words = tuple(word for word in run["command"].split() if word not in chosen)
            found.setdefault(words, {}).setdefault(name, []).append(run["seed"])
    lines: list[str] = []
    for words, seeds in found.items():
        for same in dict.fromkeys(map(tuple, seeds.values())):
            names = [name for name, own in seeds.items() if tuple(own) == same]
            command = " ".join([*words, f"memory={','.join(names)}"])
            if same != (0,):
                command += f" experiment.seed={','.join(map(str, same))}"
            if len(names) * len(same) > 1:
                command = command.replace(".py ", ".py -m ", 1)
            parts = textwrap.wrap(command, 78, break_long_words=False, break_on_hyphens=False)
            lines.append(" \\\n    ".join(parts))
    return ["```bash", *lines, "```"]


def list_facts(runs: list[Run], source: str) -> str:
    """What the runs share, and where all of it is."""
    frames = " or ".join(f"{int(x):,}" for x in dict.fromkeys(run["frames"] for run in runs))
    commits = dict.fromkeys(run["commit"] for run in runs if run.get("commit"))
    # a site has files to offer, and no folders
    raw = f"[`{source}`]({source})" if source.endswith(".csv") else f"`docs/results/{source}/`"
    return f"{frames} steps each{''.join(f', commit {x}' for x in commits)}; raw data: {raw}."


def get_values(preset: str, runs: list[Run]) -> dict[str, Any]:
    """Values that differ from the defaults, as the preset and the commands have them."""
    groups = TUNED["ppo"].get(preset, {})
    values = {f"{group}.{key}": x for group, own in groups.items() for key, x in own.items()}
    for word in (word for run in runs for word in run["command"].split()):
        name, _, text = word.partition("=")
        if name in DEFAULTS and name != "experiment.seed":
            values[name] = text if isinstance(DEFAULTS[name], str) else ast.literal_eval(text)
    return {name: x for name, x in values.items() if x != DEFAULTS[name]}


def list_values(presets: dict[str, list[Run]]) -> list[str]:
    """Table of the values that differ from the defaults, by preset."""
    changed = {preset: get_values(preset, runs) for preset, runs in presets.items()}
    names = [name for name in DEFAULTS if any(name in values for values in changed.values())]
    page = "[the defaults](../recipes/hyperparameters.md)"
    if not names:
        return [f"All values are {page}."]
    lines = [
        f"Values that differ from {page}:", "", "<!-- no-raw: values of the code -->",
        f"| value | default | {' | '.join(f'`{preset}`' for preset in changed)} |",
        "|---" * (2 + len(changed)) + "|",
    ]  # fmt: skip
    for name in names:
        cells = [show(values.get(name, DEFAULTS[name])) for values in changed.values()]
        lines.append(f"| `{name}` | {show(DEFAULTS[name])} | {' | '.join(cells)} |")
    return lines


def make_sheets() -> str:
    """Markdown; pages include a section of it each."""
    lines: list[str] = []
    for source, presets in load().items():
        name = source.partition("/")[0]
        lines += [f"--8<-- [start:{name}]", ""]
        for preset, runs in presets.items():
            if len(presets) > 1:
                lines += [f"### `{preset}`", ""]
            lines += [
                *list_scores(runs),
                "",
                *list_commands(runs),
                "",
                list_facts(runs, source),
                "",
            ]
        if len(presets) > 1:
            lines += ["### Values", ""]
        lines += [*list_values(presets), "", f"--8<-- [end:{name}]", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(make_sheets())
