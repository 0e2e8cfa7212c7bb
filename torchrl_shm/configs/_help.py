"""The text of `--help`: the groups and their members, short enough to read."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable
from textwrap import fill

from torchrl_shm.training import Experiment

# this many members that begin alike are written as one word
_FOLD = 3


def help_template(paths: Iterable[str], *, hidden: Iterable[str] = ()) -> str:
    """Hydra's template of `--help` with the members of each group folded and wrapped.

    Args:
        paths: groups and members, as in `env/wind`.
        hidden: groups that are not chosen on the command line.

    Returns:
        The template; Hydra replaces `$CONFIG` by the configuration.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        group, _, name = path.partition("/")
        if group not in hidden:
            members[group].append(name)
    lines = [
        fill(f"{group}: {', '.join(_fold(names))}", 98, subsequent_indent="    ",
             break_long_words=False, break_on_hyphens=False)
        for group, names in sorted(members.items())
    ]  # fmt: skip
    return "\n".join(
        [
            "== Groups ==",
            "Choose a member of each: group=member",
            "",
            *lines,
            "",
            "== Experiment ==",
            *_explain(Experiment),
            "",
            "== Configuration ==",
            "Set any value: group.name=value. Sweep with -m: memory=shm,gru experiment.seed=0,1",
            "",
            "$CONFIG",
        ]
    )


def _explain(options: type) -> list[str]:
    """A line for each attribute that the docstring of a dataclass describes."""
    section = (inspect.getdoc(options) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.M)
    return [
        fill(f"experiment.{name}: {' '.join(text.split())}", 98, subsequent_indent="    ")
        for name, text in entries
    ]


def _fold(names: Iterable[str]) -> list[str]:
    """`a_x, a_y, a_z` becomes `a_{x,y,z}`, and `AnX, AnY, AnZ` becomes `An{X,Y,Z}`."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        # the last word, after an underscore or from its capital letter on
        match = re.search(r"(?<=_)[^_]+$|(?<!^)(?<!/)[A-Z][^A-Z_]*$", name)
        start = match.start() if match else len(name)
        ends[name[:start]].append(name[start:])
    folded: list[str] = []
    for stem, last in ends.items():
        fold = len(last) >= _FOLD
        folded += [f"{stem}{{{','.join(last)}}}"] if fold else [stem + end for end in last]
    return sorted(folded)
