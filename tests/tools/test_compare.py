"""From a sweep over memories to the picture and the table, and the table of sizes."""

from __future__ import annotations

from pathlib import Path

from tests.figures.test_plots import check_picture
from tests.recipes._helpers import FRAMES, TINY, command, process
from torchrl_shm.configs import MEMORIES


def test_two_commands_compare_memories(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    names = ("lru", "linear_attention", "mlp")
    result = command(
        "ppo_shm.py", "-m", *TINY, f"memory={','.join(names)}", "seed=0,1", "size=params",
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    result = process("compare.py", str(sweep), cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert {line.split("`")[1] for line in lines[2:]} == set(names)
    assert all(f"| 2 | {FRAMES:,} |" in line.replace("`", "") for line in lines[2:])
    assert (sweep / "comparison.md").read_text().splitlines() == lines
    check_picture(sweep / "comparison.png")
    other = tmp_path / "other"
    again = process("compare.py", str(sweep), "--output", str(other), cwd=tmp_path)
    assert again.stdout == result.stdout
    check_picture(other.with_suffix(".png"))


def test_a_mistyped_folder_is_not_made(tmp_path: Path) -> None:
    result = process("compare.py", "typo", cwd=tmp_path)
    assert result.code == 2
    assert "typo" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_table_of_sizes() -> None:
    result = command("memories.py", "--help")
    assert result.code == 0
    assert "such as size=params" in result.stdout


def test_table_of_sizes() -> None:
    result = command("memories.py", "size=params", "algo.embedding_size=16")
    header, _, *lines = result.stdout.splitlines()
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["memory", "parameters", "state floats", "FLOPs per step"]
    assert [line.split("`")[1] for line in lines] == list(MEMORIES)
