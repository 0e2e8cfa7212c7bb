"""How soon and how well runs with other calibrations, and with the released start, have learned.

PYTHONPATH=. python docs/pictures/calibrations.py

reads the curves and scores of the suites, and writes `docs/results/ablation/calibrations.csv`: the
frames after which a single update was at two levels of the return, or of the success, for the first
time, the mean of the last ten updates that were kept, and the score in the tests.
"""

from __future__ import annotations

import csv
from typing import Any

from docs.pictures.presets import RESULTS, read
from torchrl_shm.configs import SIZES

TARGET = RESULTS / "ablation" / "calibrations.csv"
# by task: the suite of its preset, the score, and two levels of it
TASKS = {
    "popgym_autoencode_easy": ("paper_popgym", "return", 0.5, 0.9),
    "popgym_repeat_previous_hard": ("paper_popgym", "return", 0.0, 0.7),
    "visual_match_250": ("paper_credit", "success", 0.5, 0.9),
}
VARIANTS = ("", "48", "released_start")


def make_rows() -> list[dict[str, Any]]:
    """One row per run: those of the preset first, then those of the ablation."""
    rows: list[dict[str, Any]] = []
    for task, (suite, score, low, high) in TASKS.items():
        for name in (suite, "ablation"):
            for run in read(RESULTS / name / "summary.csv"):
                ours = run["memory"].startswith("shm") and run["variant"] in VARIANTS
                if run["env"] != task or not ours:
                    continue
                curve = read(RESULTS / name / f"{run['run']}.csv")
                values = [float(row[score]) for row in curve]
                columns = SIZES["params"][run["memory"]]["memory_size"]
                rows.append(
                    {
                        "task": task,
                        "memory": run["memory"],
                        "variant": run["variant"],
                        "seed": run["seed"],
                        "columns": 48 if run["variant"] == "48" else columns,
                        "low": low,
                        "frames_until_low": _first(curve, values, low),
                        "high": high,
                        "frames_until_high": _first(curve, values, high),
                        "train": round(sum(values[-10:]) / 10, 3),
                        "tests": run[f"eval_{score}"],
                        "commit": run["commit"],
                    }
                )
    return rows


def _first(curve: list[dict[str, str]], values: list[float], level: float) -> str:
    """Frames after the first update at that level; empty where none was."""
    reached = (row["frames"] for row, x in zip(curve, values, strict=True) if x >= level)
    return next(reached, "")


if __name__ == "__main__":
    made = make_rows()
    with open(TARGET, "w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
