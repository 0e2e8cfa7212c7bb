"""Every preset that the README and the site name can be chosen on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.docs.test_code_blocks import BLOCK, PAGES, ROOT
from torchrl_shm.configs.groups import MEMBERS as members
from torchrl_shm.ops import __all__ as operations

# `env=wind` and `memory=shm,gru`; what is written for the reader to fill in has no letters there
CHOICE = re.compile(
    r"(?<![\w.])(env|memory|size|network|experiment|algo|collector|logger)=([\w/,]++)(?!<)"
)
# how names of presets begin; `key_to_door` alone looks like one, too
FAMILIES = (
    "wind", "point_robot", "t_maze", "memory_length", "key_to_door", "visual_match", "popgym",
    "shm", "fast_weights",
)  # fmt: skip
# names of the same kind that are no presets: the package, and what is called in Python
OTHERS = {"popgym", *operations}
QUOTED = re.compile(rf"`((?:{'|'.join(FAMILIES)})(?:_[a-z0-9_]*\*?)?)`")
# a page may say how a name of one's own is made
OWN = re.compile(r"add_(?:memory|env)\(\"(\w+)\"")


MEMBERS: dict[str, set[str]] = {}
for _path in members:
    _group, _, _name = _path.partition("/")
    MEMBERS.setdefault(_group, set()).add(_name)


def choices(text: str) -> Iterator[tuple[str, str]]:
    """Group and name of every choice on a command line."""
    own = set(OWN.findall(text))
    # keyword arguments of Python look the same
    text = BLOCK.sub(lambda block: "" if block["language"].startswith("py") else block[0], text)
    for group, names in CHOICE.findall(text):
        yield from ((group, name) for name in names.split(",") if name and name not in own)


def quoted(text: str) -> Iterator[str]:
    """Names in backticks that look like presets; `*` stands for any end."""
    yield from (name for name in QUOTED.findall(text) if name not in OTHERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_presets_exist(page: Path) -> None:
    text = page.read_text()
    unknown = {f"{group}={name}" for group, name in choices(text) if name not in MEMBERS[group]}
    presets = MEMBERS["env"] | MEMBERS["memory"]
    unknown |= {name for name in quoted(text) if not any(fnmatch(x, name) for x in presets)}
    assert not unknown


def test_tasks_are_of_known_families() -> None:
    """A new task would not be looked for otherwise."""
    others = {name for name in MEMBERS["env"] if not name.startswith(FAMILIES)}
    assert others == {"gym"}


def test_names_are_found() -> None:
    text = """\
        python a.py env=wind memory=shm,traces algo.env=x env=<preset> env=popgym/<Name><Level>
        add_memory("traces", Traces), `key_to_door`, `visual_match_active_*`, `shm_scan`, `popgym`
        `popgym_<task>_<level>`, `_250`, `max_wind`, `memory=lstm`
        """
    assert list(choices(text)) == [("env", "wind"), ("memory", "shm"), ("memory", "lstm")]
    assert list(quoted(text)) == ["key_to_door", "visual_match_active_*"]
