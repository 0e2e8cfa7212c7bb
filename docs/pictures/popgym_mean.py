"""SHM's returns on all twelve tasks of POPGym that the paper plays, as it measures them, too.

PYTHONPATH=. python docs/pictures/popgym_mean.py

reads the scores and curves of the suite and writes `docs/results/paper_popgym/sampled.md`.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import get_args

from docs.pictures.presets import RESULTS, read
from torchrl_shm.envs.popgym import Level

SUITE = RESULTS / "paper_popgym"
TARGET = SUITE / "sampled.md"
HEADER = ["task", "seeds", "in the tests, most likely action", "at the end of training, sampled"]


def make_table() -> str:
    """A row per task, means over its seeds, and the mean of these rows."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in read(SUITE / "summary.csv"):
        if run["memory"] == "shm":
            # some updates of long episodes end none
            returns = [x for row in read(SUITE / f"{run['run']}.csv") if (x := row["return"])]
            last = fmean(map(float, [x for x in returns if x != "nan"][-10:]))
            scores[run["env"]].append((float(run["eval_return"]), last))
    rows = [HEADER, ["---"] * len(HEADER)]
    means: list[tuple[float, float]] = []
    for env, pairs in sorted(scores.items(), key=lambda item: _place(item[0])):
        tests, last = (fmean(column) for column in zip(*pairs, strict=True))
        means.append((tests, last))
        rows.append([f"`{env}`", str(len(pairs)), f"{tests:.3f}", f"{last:.3f}"])
    total = [f"**{fmean(column):.3f}**" for column in zip(*means, strict=True)]
    rows.append([f"**mean of all {len(means)}**", "", *total])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _place(env: str) -> tuple[str, int]:
    game, _, level = env.rpartition("_")
    return game, get_args(Level).index(level)


if __name__ == "__main__":
    TARGET.write_text(make_table())
