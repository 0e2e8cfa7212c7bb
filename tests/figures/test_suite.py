"""Results of a suite: read, put into tables, drawn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools._helpers import tool
from torchrl_shm.figures import load_suite, plot_gaps, suite_table

# final success of each run
SCORES = {
    "visual_match_100": {"shm": [1.0, 0.9, 0.8], "gru": [0.4, 0.2]},
    "visual_match_50": {"shm": [1.0, 1.0, 0.7], "gru": [0.9, 1.0]},
    "visual_match_active_100": {"shm": [0.5, 0.5, 0.5], "gru": [0.0, 0.1]},
}


def write(folder: Path, variant: str = "", success: bool = True, scores: Any = SCORES) -> Path:
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for env, memories in scores.items():
        for memory, finals in memories.items():
            for seed, score in enumerate(finals):
                run = f"{env}-{memory}-seed{seed}"
                row = {"run": run, "env": env, "memory": memory, "variant": variant, "seed": seed}
                row |= {"eval_return": 10 * score, "eval_success": score if success else ""}
                rows.append(row)
                lines = [f"{i * 1000},{i / 9},{i / 9 * score}" for i in range(10)]
                (folder / f"{run}.csv").write_text("\n".join(["frames,return,success", *lines]))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_scores_and_order(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "results"))
    assert suite.tasks == ["visual_match_50", "visual_match_100", "visual_match_active_100"]
    assert suite.memories == ["shm", "gru"]
    assert suite.scores("visual_match_100", "shm").tolist() == [1.0, 0.9, 0.8]
    assert suite.curves["visual_match_100-gru-seed1"]["success"][-1] == pytest.approx(0.2)


def test_without_successes_returns_count(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "results", success=False))
    assert suite.scores("visual_match_100", "shm").tolist() == [10.0, 9.0, 8.0]
    # returns of several tasks have no common scale
    assert "interquartile" not in suite_table(suite)


def test_table(tmp_path: Path) -> None:
    tasks, over_all = suite_table(load_suite(write(tmp_path / "results"))).split("\n\n")
    header, _, first, *_ = tasks.splitlines()
    assert header == "| task | score | `shm` | `gru` |"
    assert first.startswith("| `visual_match_50` | success | 0.900 (")
    assert first.endswith(", 2 |")
    *_, ours, other = over_all.splitlines()
    matrix = np.array([[1.0, 1.0, 0.5], [1.0, 0.9, 0.5], [0.7, 0.8, 0.5]])
    middle = np.sort(matrix, axis=None)[2:-2].mean()
    assert ours.startswith(f"| `shm` | {middle:.2f} (")
    # of each task 4 of 6, 6 of 6 and 6 of 6 pairs, a tie of the first counting half
    assert other.endswith(f"| {(3 / 6 + 1 + 1) / 3:.0%} |")


def test_variants_are_tasks_of_their_own(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "results", variant="no_time"))
    assert suite.tasks[0] == "visual_match_50 (no_time)"


def test_the_tool_writes_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "results")
    result = tool("results", folder)
    assert result.code == 0, result.stderr
    assert result.stdout.strip() == (folder / "table.md").read_text().strip()
    for name in ("curves.png", "gaps.png"):
        assert (folder / name).stat().st_size > 10_000


def test_no_run_hides_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("torchrl_shm.figures.suite.save", lambda figure, _: figures.append(figure))
    folder = write(tmp_path / "results")
    assert plot_gaps(load_suite(folder), tmp_path / "gaps.png")
    (axes,) = figures[0].axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    places = sorted(np.concatenate([line.get_xdata() for line in dots]))
    assert len(places) == len({*places}) == 10
    # at the first length or at the second
    assert np.abs(np.array(places) - np.repeat([50, 100], 5)).max() < 5


def test_what_compares_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("torchrl_shm.figures.suite.save", lambda figure, _: figures.append(figure))
    alone = {f"key_to_door_{n}": {"shm": [1.0, 0.9]} for n in (100, 250)}
    for scores, title in ((SCORES | alone, "visual_match"), (alone, "key_to_door")):
        suite = load_suite(write(tmp_path / title, scores=scores))
        assert plot_gaps(suite, tmp_path / "gaps.png")
        assert [axes.get_title() for axes in figures.pop().axes] == [title]


def test_nothing_was_collected(tmp_path: Path) -> None:
    result = tool("results", tmp_path)
    assert result.code == 2
    assert "no run of the suite was collected there" in result.stderr


def test_a_suite_in_progress_has_no_statistics_over_tasks(tmp_path: Path) -> None:
    folder = write(tmp_path / "results")
    lines = (folder / "summary.csv").read_text().splitlines()
    (folder / "summary.csv").write_text("\n".join(lines[:-1]))
    assert "interquartile" not in suite_table(load_suite(folder))
