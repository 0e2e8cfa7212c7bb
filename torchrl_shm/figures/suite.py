"""The runs of a suite: a table of all tasks and memories, learning curves, scores over the gap."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_shm.figures.comparison import (
    confidence_band,
    mean_of,
    read_metrics,
    smooth,
    with_interval,
)
from torchrl_shm.figures.statistics import (
    interquartile_mean,
    probability_of_improvement,
    stratified_interval,
)
from torchrl_shm.figures.style import TEXT, choose_lines, dress, label_curves, new_figure, save


@dataclass(frozen=True)
class SuiteScores:
    """Results of a suite, as `torchrl-shm suite collect` writes them.

    Attributes:
        rows: the rows of `summary.csv`, one for each run.
        curves: the metrics of each run by its name, column by column, each of shape `[rows]`.
    """

    rows: list[dict[str, str]]
    curves: dict[str, dict[str, np.ndarray]]

    @property
    def tasks(self) -> list[str]:
        """Tasks, with the variant in brackets where there is one."""
        return list(dict.fromkeys(map(_task, self.rows)))

    @property
    def memories(self) -> list[str]:
        """Memories, SHM first."""
        names = dict.fromkeys(row["memory"] for row in self.rows)
        return sorted(names, key=lambda name: not name.startswith("shm"))

    def runs(self, task: str, memory: str) -> list[dict[str, str]]:
        """Rows of a task and a memory."""
        return [row for row in self.rows if (_task(row), row["memory"]) == (task, memory)]

    def scores(self, task: str, memory: str) -> np.ndarray:
        """Final scores `[runs]`: the share of successes where there are some, else the return."""
        column = "eval_success" if _has_success(self.rows, task) else "eval_return"
        return np.array([float(row[column]) for row in self.runs(task, memory)])


def load_suite(folder: str | Path) -> SuiteScores:
    """Read what was collected of a suite.

    Args:
        folder: such as `docs/results/paper_credit`.

    Returns:
        The results; runs that are not finished are missing.

    Raises:
        FileNotFoundError: nothing was collected there.
    """
    path = Path(folder) / "summary.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no run of the suite was collected there")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: (_natural(row["env"]), row["variant"], row["memory"], row["seed"]))
    curves = {row["run"]: read_metrics(path.with_name(f"{row['run']}.csv")) for row in rows}
    return SuiteScores(rows, curves)


def suite_table(suite: SuiteScores) -> str:
    """Scores of every memory on every task as Markdown, and over all tasks.

    Args:
        suite: the results.

    Returns:
        A table of means, with 95 % confidence intervals over seeds and their number. Where all
        tasks have the same measure, and a memory as many runs of each, a second one: the
        interquartile mean over tasks and runs with its stratified interval, and how likely a run of
        the first memory beats one of each.
    """
    memories = suite.memories
    lines = [
        f"| task | score | {' | '.join(f'`{name}`' for name in memories)} |",
        "|---|---|" + "---|" * len(memories),
    ]
    for task in suite.tasks:
        cells: list[str] = []
        for memory in memories:
            scores = suite.scores(task, memory)
            cells.append(f"{with_interval(scores)}, {len(scores)}" if len(scores) else "")
        measure = "success" if _has_success(suite.rows, task) else "return"
        lines.append(f"| `{task}` | {measure} | {' | '.join(cells)} |")
    over_all = _over_all(suite)
    return "\n".join([*lines, *(["", *over_all] if over_all else [])])


def _over_all(suite: SuiteScores) -> list[str]:
    success = {_has_success(suite.rows, task) for task in suite.tasks}
    bounded = all(row["env"].startswith("popgym_") for row in suite.rows)
    matrices = {name: _matrix(suite, name) for name in suite.memories}
    whole = {name: matrix for name, matrix in matrices.items() if matrix is not None}
    if len(suite.tasks) < 2 or len(whole) < 2 or not (success == {True} or bounded):
        return []
    first = next(iter(whole))
    count = len(suite.tasks)
    lines = [
        f"| memory | interquartile mean over {count} tasks (95 %) | `{first}` is better |",
        "|---|---|---|",
    ]
    for name, matrix in whole.items():
        low, high = stratified_interval(matrix, interquartile_mean)
        better = "" if name == first else f"{probability_of_improvement(whole[first], matrix):.0%}"
        lines.append(
            f"| `{name}` | {interquartile_mean(matrix):.2f} ({low:.2f} to {high:.2f}) | {better} |"
        )
    return lines


def _matrix(suite: SuiteScores, memory: str) -> np.ndarray | None:
    """Scores `[runs, tasks]`, or `None` as long as not all tasks have as many, and two."""
    columns = [suite.scores(task, memory) for task in suite.tasks]
    counts = {len(column) for column in columns}
    return np.stack(columns, 1) if len(counts) == 1 and min(counts) > 1 else None


def plot_suite(suite: SuiteScores, path: str | Path) -> None:
    """Draw learning curves of every task, with 95 % confidence bands over seeds.

    Args:
        suite: the results.
        path: file to write; its ending chooses the format.
    """
    tasks, lines = suite.tasks, choose_lines(suite.memories)
    columns = min(len(tasks), 2)
    rows = -(-len(tasks) // columns)
    figure = new_figure(2.3 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    ends: list[dict[str, float]] = []
    for axes, task in zip(grid, tasks, strict=False):
        column = "success" if _has_success(suite.rows, task) else "return"
        ends.append({})
        for memory in suite.memories:
            curves = [suite.curves[row["run"]] for row in suite.runs(task, memory)]
            if not curves:
                continue
            # runs of one setting have the same updates
            length = min(len(curve["frames"]) for curve in curves)
            values = np.stack([smooth(curve[column])[:length] for curve in curves])
            frames, line, mean = curves[0]["frames"][:length] / 1e6, lines[memory], mean_of(values)
            axes.plot(frames, mean, color=line.color, linewidth=line.width, zorder=line.zorder)
            axes.fill_between(frames, *confidence_band(values), color=line.color, alpha=0.12)
            ends[-1][memory] = float(mean[-1])
        # names that are longer than a panel is wide
        axes.set(title=f"{task.removeprefix('popgym_')}\n{column}")
        dress(axes)
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel("million environment steps", fontsize=TEXT)
    for axes, end in zip(grid, ends, strict=False):
        label_curves(axes, end, lines)
    save(figure, path)


def plot_gaps(suite: SuiteScores, path: str | Path) -> bool:
    """Draw the final scores over the number of steps that have to be bridged.

    Lines are means, and do not cross a length of which a memory has no run; each dot is a run. At
    every length memories, and the runs of one, stand side by side, so that none hides another. The
    kind of task with the most runs comes first.

    Args:
        suite: the results; tasks that end in a number, such as `visual_match_250`.
        path: file to write; its ending chooses the format.

    Returns:
        Whether there was something to draw: a kind of task with several lengths. Where one is of
        several memories, those of a single one are left out.
    """
    kinds: dict[str, list[int]] = {}
    for task in suite.tasks:
        found = re.fullmatch(r"(.+)_(\d+)", task)
        if found and _has_success(suite.rows, task):
            kinds.setdefault(found[1], []).append(int(found[2]))
    kinds = {kind: sorted(lengths) for kind, lengths in kinds.items() if len(lengths) > 1}
    if not kinds:
        return False
    lines = choose_lines(suite.memories)
    compared: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for kind, lengths in kinds.items():
        found = {name: _scores_by_length(suite, kind, lengths, name) for name in lines}
        compared[kind] = {name: scores for name, scores in found.items() if scores}
    if max(map(len, compared.values())) > 1:
        # a kind of which one memory was run so far compares nothing
        kinds = {kind: lengths for kind, lengths in kinds.items() if len(compared[kind]) > 1}
    kinds = dict(sorted(kinds.items(), key=lambda item: -_num_runs(compared[item[0]])))
    figure = new_figure(2.7 * len(kinds) + 0.2)
    grid = figure.subplots(len(kinds), 1, squeeze=False).ravel()
    for axes, (kind, lengths) in zip(grid, kinds.items(), strict=True):
        found = compared[kind]
        # a column for each memory, narrower where lengths are close or memories many
        close = min(np.diff(lengths)) / (1.5 * len(found))
        column = float(min(0.04 * (lengths[-1] - lengths[0]), close))
        beside = {n: [name for name in found if n in found[name]] for n in lengths}
        ends: dict[int, dict[str, float]] = {}
        for memory, by_length in found.items():
            line = lines[memory]
            means = {n: float(scores.mean()) for n, scores in by_length.items()}
            places = {
                n: n + column * _side(beside[n].index(memory), len(beside[n])) for n in by_length
            }
            axes.plot(
                [places.get(n, n) for n in lengths], [means.get(n, math.nan) for n in lengths],
                "_-", color=line.color, linewidth=line.width, alpha=0.7,
                markersize=14, markeredgewidth=line.width, zorder=line.zorder,
            )  # fmt: skip
            for place, scores in zip(places.values(), by_length.values(), strict=True):
                count = len(scores)
                runs = place + 0.8 * column * _side(np.arange(count), count) / count
                axes.plot(
                    runs, scores, "o", color=line.color, markersize=4.5, markeredgecolor="white",
                    markeredgewidth=0.5, zorder=5, clip_on=False,
                )  # fmt: skip
            last = list(by_length)[-1]
            ends.setdefault(last, {})[memory] = means[last]
        axes.set(title=kind, ylabel="success", ylim=(-0.03, 1.05))
        axes.set_xticks(lengths)
        dress(axes)
        for n, names in ends.items():
            # beside the last column
            edge = None if n == lengths[-1] else n + column * (len(beside[n]) / 2 + 0.3)
            label_curves(axes, names, lines, edge)
    grid[-1].set(xlabel="steps to bridge")
    dress(grid[-1])
    save(figure, path)
    return True


def _num_runs(compared: Mapping[str, Mapping[int, np.ndarray]]) -> int:
    return sum(len(scores) for by_length in compared.values() for scores in by_length.values())


def _scores_by_length(
    suite: SuiteScores, kind: str, lengths: Sequence[int], memory: str
) -> dict[int, np.ndarray]:
    scores = {n: suite.scores(f"{kind}_{n}", memory) for n in lengths}
    return {n: found for n, found in scores.items() if len(found)}


def _side(index: Any, count: int) -> Any:
    """Place of one of several side by side, zero in the middle."""
    return index - (count - 1) / 2


def _task(row: dict[str, str]) -> str:
    return f"{row['env']} ({row['variant']})" if row["variant"] else row["env"]


def _has_success(rows: Sequence[dict[str, str]], task: str) -> bool:
    return all(row["eval_success"] for row in rows if _task(row) == task)


def _natural(name: str) -> list[tuple[int, str]]:
    """So that 50 comes before 100, and easy before medium before hard."""
    levels = {"easy": 0, "medium": 1, "hard": 2}
    return [(int(x), "") if x.isdigit() else (levels.get(x, 10**9), x) for x in name.split("_")]
