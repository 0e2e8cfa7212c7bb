"""The tables of the pages on hyperparameters: defaults, and what the presets change, by algorithm.

PYTHONPATH=. python docs/pictures/hyperparameters.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from torchrl_shm.configs import ENVS, GRPO, PPO, SAC, TUNED, Reinforce
from torchrl_shm.configs.tuned import SHM_VALUES
from torchrl_shm.envs.popgym import Level
from torchrl_shm.networks import make_actor_critic, make_soft_actor_critic
from torchrl_shm.training import Experiment

# title, algorithm, network
ALGOS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "ppo": ("PPO", PPO, make_actor_critic),
    "sac": ("SAC", SAC, make_soft_actor_critic),
    "reinforce": ("REINFORCE", Reinforce, make_actor_critic),
    "grpo": ("GRPO", GRPO, make_actor_critic),
}
# with these, sequences of all games of POPGym are as long as an episode, which would be a row each
WHOLE_EPISODES = ("reinforce", "grpo")
# what is given by other groups, and what does not change what is learned
OTHERS = {
    "env", "memory", "actor_memory", "device", "threads", "checkpoint_interval",
    "keep_checkpoints", "on_nonfinite", "resume", "run_dir", "names", "compile", "storage",
}  # fmt: skip


def explain(function: Callable[..., Any]) -> dict[str, str]:
    """First clause of what the docstring says of each argument or attribute."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n|\n)+)", text, re.M)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    # the command line says null
    clauses = {name: re.split(r"[.;:](?:\s|$)", " ".join(x.split()))[0] for name, x in entries}
    return {name: clause.replace("`None`", "`null`") for name, clause in clauses.items()}


def show(value: object) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    # large counts are easier to read in groups of three digits, as Hydra takes them, too
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else f"{value}".lower()


def defaults(title: str, function: Callable[..., Any]) -> Iterable[tuple[str, Any, str]]:
    """Name on the command line, default and meaning of every value."""
    meaning = explain(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in OTHERS:
            yield f"{title}.{name}", parameter.default, meaning.get(name, "")


def merge_levels(names: list[str]) -> list[str]:
    """Names of presets; `*` stands for all levels of a task of POPGym, or for all its tasks."""
    ours = {name for name in ENVS if name.startswith("popgym_")}
    found: list[str] = []
    for name in names:
        levels = {f"{name.rpartition('_')[0]}_{level}" for level in get_args(Level)}
        if name in ours and ours <= {*names}:
            found.append("`popgym_*`")
        elif name in ours and levels <= {*names}:
            found.append(f"`{name.rpartition('_')[0]}_*`")
        else:
            found.append("`popgym/<Name><Level>`" if "/" in name else f"`{name}`")
    return list(dict.fromkeys(found))


def list_values(rows: Iterable[tuple[str, Any, str]]) -> list[str]:
    """Table of defaults."""
    lines = [f"| `{name}` | `{show(value)}` | {meaning} |" for name, value, meaning in rows]
    return ["", "| value | default | |", "|---|---|---|", *lines, ""]


def list_presets(algo: str, rows: list[tuple[str, Any, str]]) -> list[str]:
    """Table of what the presets change; those with equal values share a row."""
    presets = {
        env: {f"{group}.{key}": x for group, values in groups.items() for key, x in values.items()}
        for env, groups in TUNED[algo].items()
    }
    default = {name: value for name, value, _ in rows}
    columns = [name for name in default if any(name in values for values in presets.values())]
    places: dict[tuple[str, ...], list[str]] = {}
    for env, values in presets.items():
        found = {name: values.get(name, default[name]) for name in columns}
        if algo in WHOLE_EPISODES and env.startswith("popgym_"):
            found["algo.rollout_length"] = "an episode"
        # bold is what differs from the default
        cells = (show(x) if x == default[name] else f"**{show(x)}**" for name, x in found.items())
        places.setdefault(tuple(cells), []).append(env)
    head = " | ".join(f"`{name.partition('.')[2]}`" for name in columns)
    lines = ["", f"| preset | {head} |", "|---" * (len(columns) + 1) + "|"]
    for cells, envs in places.items():
        lines.append(f"| {', '.join(merge_levels(envs))} | {' | '.join(cells)} |")
    return [*lines, ""]


def list_shm() -> list[str]:
    """Table of the options of SHM that differ from those of its class."""
    lines: list[str] = []
    for key, values in SHM_VALUES.items():
        algo, _, task = key.rpartition("/")
        envs = ", ".join(merge_levels([env for env in ENVS if env.startswith(task)]))
        options = ", ".join(f"`memory.{name}={value}`" for name, value in values.items())
        lines.append(f"| {envs}{f', with {ALGOS[algo][0]} alone' if algo else ''} | {options} |")
    return ["", "| preset | with `memory=shm` and its ablations |", "|---|---|", *lines, ""]


def make_tables() -> str:
    """Markdown; pages include a section of it each."""
    run = list(defaults("experiment", Experiment))
    sections: dict[str, list[str]] = {}
    for algo, (title, make, network) in ALGOS.items():
        rows = list(defaults("algo", make))
        sections[algo] = [
            f"## {title}", *list_values(rows), f"What presets change with {title}:",
            *list_presets(algo, [*rows, *run, *defaults("network", network)]),
        ]  # fmt: skip
    why = (
        "With every algorithm: [keys](../concepts/shm.md#the-length-of-a-key), and "
        "[rows that forget](../concepts/spans.md#rows-that-forget), where theta is a table that is "
        "learned."
    )
    sections["shm"] = ["## SHM", "", why, *list_shm()]
    sections["run"] = ["## Run", *list_values(run)]
    for network in (make_actor_critic, make_soft_actor_critic):
        users = ", ".join(title for title, _, used in ALGOS.values() if used is network)
        values = list_values(defaults("network", network))
        sections[network.__name__] = [f"## Network of {users}", *values]
    lines = (
        line
        for name, section in sections.items()
        for line in (f"--8<-- [start:{name}]", "", *section, f"--8<-- [end:{name}]", "")
    )
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(make_tables())
