"""From a sweep over memories to the picture and the table, and the table of sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.figures.test_plots import check_picture
from tests.recipes._helpers import TINY, command
from tests.tools._helpers import tool
from torchrl_shm.configs import MEMORIES


@pytest.mark.slow
def test_two_commands_compare_memories(tmp_path: Path) -> None:
    sweep, names = tmp_path / "sweep", {"lru", "mlp"}
    result = command(
        "ppo_shm.py", "-m", *TINY, "experiment.total_frames=320", f"memory={','.join(names)}",
        "experiment.seed=0,1", "size=params", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    result = tool("compare", sweep)
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert {line.split("`")[1] for line in lines[2:]} == names
    assert all("| 2 | 320 |" in line.replace("`", "") for line in lines[2:])
    assert (sweep / "comparison.md").read_text().splitlines() == lines
    check_picture(sweep / "comparison.png")
    # a name may have dots, and folders are made
    other = tmp_path / "new" / "v1.2"
    assert tool("compare", sweep, "--output", other).stdout == result.stdout
    check_picture(other.with_name("v1.2.png"))


def test_table_of_sizes() -> None:
    result = tool("memories", "--size", "params", "--features", 16)
    header, _, *lines = result.stdout.splitlines()
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["memory", "parameters", "state floats", "FLOPs per step"]
    assert [line.split("`")[1] for line in lines] == list(MEMORIES)
    # sizes are those of `size=params`
    (own,) = (x for x in tool("memories").stdout.splitlines() if "`lru`" in x)
    assert own not in lines
