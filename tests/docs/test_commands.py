"""Every command of the README and of the site that starts a recipe is one that it understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests._night import at_night
from tests.docs._commands import all_commands
from tests.docs.test_code_blocks import ROOT
from tests.recipes._helpers import command

START = re.compile(r"(?:\w+=\S+ )*(?:\S+ )*?recipes/(\w+\.py)(.*)")
# what stands for something of the reader's, or is to be made first
OPEN = re.compile(r"\.\.\.|<\w|\$\w|my_|Strict-v0|hydra/launcher=ray|resume=(?!auto)")
# names that a file of another page adds
ADDED = ("positions:", "cards:", "robot:")


def recipes() -> dict[str, list[tuple[str, list[str]]]]:
    """Recipe and options of every such command, by page."""
    return {
        page: [
            (started[1], shlex.split(started[2]))
            for line in lines
            if (started := START.fullmatch(line))
            and not OPEN.search(started[2])
            and (ROOT / "recipes" / started[1]).exists()
        ]
        for page, lines in all_commands().items()
    }


def first_of_sweep(options: list[str]) -> list[str]:
    """What the first job of a sweep is given; the options themselves where there is no sweep."""
    if "-m" not in options and "--multirun" not in options:
        return options
    kept = [x for x in options if x not in ("-m", "--multirun") and not x.startswith("hydra")]
    ranges = [re.sub(r"=range\(.*\)$", "=0", x) for x in kept]
    return [re.sub(r"^([^=\[]+=[^,\[{]+),.*$", r"\1", x) for x in ranges]


def test_they_are_found() -> None:
    found = [x for page in recipes().values() for x in page]
    assert len(found) > 60
    assert {script for script, _ in found} >= {"ppo_shm.py", "sac_shm.py", "grpo_shm.py"}
    assert first_of_sweep(["-m", "memory=shm,gru", "a.b=range(20)", "hydra/launcher=joblib"]) == [
        "memory=shm", "a.b=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "page",
    at_night(
        [page for page, found in recipes().items() if found],
        # there are the commands of suites, one kind of which each is composed by a test of theirs
        unless=lambda page: not page.endswith("sheets.md"),
    ),
)
def test_recipes_understand_them(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for script, options in recipes()[page]:
        if any(name in x for name in ADDED for x in options):
            continue
        given = [x for x in first_of_sweep(options) if x not in ("--cfg", "job")]
        result = command(script, "--cfg", "job", *given)
        assert result.code == 0, f"{script} {' '.join(options)}: {result.stderr}"
        assert "total_frames: " in result.stdout
    assert not list(tmp_path.iterdir())


def test_what_it_would_find() -> None:
    for wrong in ("env=wnd", "memory.memory_sice=8", "algo.epochs=some"):
        assert command("ppo_shm.py", "--cfg", "job", wrong).code == 2
