"""Runs side by side: what is read, averaged and refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.figures.test_plots import check_picture
from torchrl_shm.figures import Run, comparison_table, confidence_band, load_runs, plot_comparison

NAN = float("nan")


def make_run(
    memory: str = "shm", seed: int = 0, score: float = 1.0, *, updates: int = 20, **options: Any
) -> Run:
    summary = {
        "env": "wind", "memory": memory, "seed": seed, "frames": 10 * updates, "seconds": 90.0,
        "eval_return": score, "eval_success": 0.5,
    } | options  # fmt: skip
    values = score * np.arange(updates, dtype=np.float64)
    # no episode ended in the first update
    values[0] = NAN
    frames = 10.0 * np.arange(1, updates + 1)
    return Run(summary, {"frames": frames, "return": values, "success": values / updates})


def save(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(dict(run.summary)))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(run.metrics)
        writer.writerows(zip(*run.metrics.values(), strict=True))


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    saved = [make_run("shm", 1, 3.0), make_run("shm", 0, 2.0), make_run("gru", 0, 1.0)]
    for number, run in enumerate(saved):
        save(run, tmp_path / "sweep" / str(number))
    # not finished: no summary
    (tmp_path / "sweep" / "9").mkdir()
    (tmp_path / "sweep" / "9" / "metrics.csv").write_text("frames\n")
    runs = load_runs([tmp_path])
    assert [(r.summary["memory"], r.summary["seed"]) for r in runs] == [
        ("gru", 0), ("shm", 0), ("shm", 1),
    ]  # fmt: skip
    for found, made in zip(runs, (saved[2], saved[1], saved[0]), strict=True):
        assert found.summary == made.summary
        for key, values in made.metrics.items():
            np.testing.assert_array_equal(found.metrics[key], values)
    # of the configuration, all but seed and folder is kept
    lines = "seed: 0\nrun_dir: x\nalgo:\n  gamma: 0.9\n"
    (tmp_path / "sweep" / "0" / "config.yaml").write_text(lines)
    assert load_runs([tmp_path / "sweep" / "0"])[0].config == ("algo:", "  gamma: 0.9")
    assert len(load_runs([tmp_path / "sweep" / "0", tmp_path / "sweep" / "2"])) == 2
    # a folder and one in it
    assert len(load_runs([tmp_path, tmp_path / "sweep" / "0"])) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (81.66, "81.7"),
        (0.41, "0.410"),
        (0.00672, "0.0067"),
        (-1.0, "-1.00"),
        (812.3, "812"),
        (0, "0"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert comparison_table([make_run(score=value)]).splitlines()[-1].split(" | ")[3] == text


def test_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no summary\.json"):
        load_runs([tmp_path])


class TestBand:
    def test_holds_the_mean_as_often_as_it_says(self) -> None:
        random = np.random.default_rng(0)
        draws = random.normal(size=(30, 400))
        low, high = confidence_band(draws)
        # 95 % of 400 intervals, and the bootstrap of 30 is a little short
        assert 0.90 <= np.mean((low < 0) & (high > 0)) <= 0.98

    def test_one_run_has_no_width(self) -> None:
        low, high = confidence_band(np.array([[1.0, 2.0]]))
        assert low.tolist() == high.tolist() == [1.0, 2.0]

    def test_missing_values(self) -> None:
        low, high = confidence_band(np.array([[NAN, 1.0], [NAN, 3.0], [NAN, NAN]]))
        assert np.isnan(low[0])
        assert np.isnan(high[0])
        assert (low[1], high[1]) == (1.0, 3.0)

    def test_repeats(self) -> None:
        values = np.random.default_rng(0).normal(size=7)
        assert confidence_band(values) == confidence_band(values)
        assert confidence_band(values) != confidence_band(values, seed=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3])
def test_picture(tmp_path: Path, count: int) -> None:
    runs = [
        make_run(memory, seed, 1.0 + place + seed / 10)
        for place, memory in enumerate(("mlp", "gru", "shm"))
        for seed in range(count)
    ]
    plot_comparison(runs, tmp_path / "comparison.png")
    check_picture(tmp_path / "comparison.png")


def test_tasks_without_success(tmp_path: Path) -> None:
    runs = [make_run(seed=seed, eval_success=None) for seed in range(2)]
    for run in runs:
        del run.metrics["success"]  # type: ignore[attr-defined]
    plot_comparison(runs, tmp_path / "comparison.svg")
    assert "<svg" in (tmp_path / "comparison.svg").read_text()
    assert comparison_table(runs).splitlines()[-1].split(" | ")[4] == ""


def test_table_starts_with_the_best() -> None:
    runs = [make_run("gru", 0, 5.0), make_run("shm", 0, 7.0), make_run("shm", 1, 9.0)]
    header, _, *lines = comparison_table(runs).splitlines()
    assert header.startswith("| memory | seeds | steps |")
    assert lines == [
        "| `shm` | 2 | 200 | 8.00 (7.00 to 9.00) | 50.0 % (50.0 to 50.0) | 1.5 |",
        # of one run there is no interval
        "| `gru` | 1 | 200 | 5.00 | 50.0 % | 1.5 |",
    ]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs"),
        ([make_run(), make_run(seed=1, env="t_maze")], r"several tasks, \['t_maze', 'wind'\]"),
        ([make_run(), make_run(seed=1, updates=21)], r"shm differ in length, \[200, 210\]"),
        ([make_run(), make_run()], r"shm have the same seed \[0\]"),
        (
            [replace(make_run(seed=n), config=("a: 1", f"b: {n}")) for n in range(2)],
            r"shm differ in more than their seed.*\['b: 0', 'b: 1'\]",
        ),
    ],
)
def test_what_cannot_be_compared(runs: list[Run], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        comparison_table(runs)
    with pytest.raises(ValueError, match=message):
        plot_comparison(runs, tmp_path / "comparison.png")
