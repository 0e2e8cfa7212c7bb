"""Memories and algorithms side by side, with the uncertainty that few seeds leave."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from torchrl_shm.figures.style import TITLE, choose_lines, dress, label_curves, new_figure, save

# the eye follows a mean over this share of the updates
_SMOOTH = 0.08
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Run:
    """What is compared of a finished run.

    Attributes:
        summary: its `summary.json`.
        metrics: its `metrics.csv`, column by column, each of shape `[updates]`.
        config: lines of its `config.yaml` without seed, folder and command; equal in runs that may
            be averaged.
        algo: name of its algorithm; empty where there is no `config.yaml`.
    """

    summary: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    config: tuple[str, ...] = ()
    algo: str = ""


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read finished runs.

    Args:
        folders: folders of runs, or folders that hold such folders at any depth.

    Returns:
        The runs, ordered by memory and seed, each once.

    Raises:
        FileNotFoundError: there is no finished run in a folder.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        summaries = sorted(folder.rglob("summary.json"))
        if not summaries:
            raise FileNotFoundError(
                f"{folder} holds no summary.json, at any depth: no run has finished there"
            )
        # one folder may lie in another
        found |= dict.fromkeys(summary.resolve() for summary in summaries)
    runs: list[Run] = []
    for summary in found:
        metrics = read_metrics(summary.with_name("metrics.csv"))
        config, algo = _repeated(summary.with_name("config.yaml"))
        runs.append(Run(json.loads(summary.read_text()), metrics, config, algo))
    return sorted(runs, key=lambda run: (run.summary["memory"], run.algo, run.summary["seed"]))


def confidence_band(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % confidence interval of the mean over runs, by the percentile bootstrap.

    Args:
        values: numbers of shape `[runs, ...]`; NaN counts as missing.
        seed: seed of the resampling.

    Returns:
        Lower and upper end, of shape `[...]`. Of one run both are its value.

    Examples:
        >>> import numpy as np
        >>> from torchrl_shm.figures import confidence_band
        >>> low, high = confidence_band(np.array([1.0, 2.0, 3.0]))
        >>> bool(1 <= low < 2 < high <= 3)
        True
    """
    picks = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    missing = np.isnan(values).all(0)
    means = np.where(missing, 0.0, mean_of(values[picks], 1))
    low, high = np.nanquantile(means, [0.025, 0.975], axis=0)
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def plot_comparison(runs: Sequence[Run], path: str | Path) -> None:
    """Draw learning curves and final scores of every memory, with 95 % confidence bands over seeds.

    Where there is more than one algorithm, each memory is drawn once for each.

    Args:
        runs: finished runs of one task; those of one memory and algorithm differ in their seed
            alone.
        path: file to write; its ending chooses the format.

    Raises:
        ValueError: there are no runs, they are of several tasks, or those of one memory are no
            repetitions of each other.
    """
    groups = _by_memory(runs)
    columns = ["return"] + ["success"] * all("success" in run.metrics for run in runs)
    # from the best to the worst, as the eye meets the curves
    order = sorted(groups, key=lambda name: -mean_of(_scores(groups[name])))
    lines = choose_lines(order)
    heights = [2.4] * len(columns) + [0.8 + 0.19 * len(order)]
    figure = new_figure(0.4 + sum(heights))
    *curves, final = figure.subplots(len(heights), 1, height_ratios=heights)
    ends: dict[str, dict[str, float]] = {column: {} for column in columns}
    for place, name in enumerate(order):
        group, line = groups[name], lines[name]
        for axes, column in zip(curves, columns, strict=True):
            frames = group[0].metrics["frames"] / 1e6
            values = np.stack([smooth(run.metrics[column]) for run in group])
            mean = mean_of(values)
            axes.plot(frames, mean, color=line.color, linewidth=line.width, zorder=line.zorder)
            if line.label:
                low, high = confidence_band(values)
                axes.fill_between(frames, low, high, color=line.color, alpha=0.12)
            ends[column][name] = float(mean[-1])
        scores = _scores(group)
        low, high = confidence_band(scores)
        final.plot([low, high], [place, place], color=line.color, linewidth=3, alpha=0.5)
        final.plot(scores, np.full(len(scores), place), ".", color=line.color)
    # those in gray are named here
    labels = [f"{name} ({len(groups[name])})" for name in order]
    final.set_yticks(range(len(order)), labels)
    for tick, name in zip(final.get_yticklabels(), order, strict=True):
        tick.set_color(lines[name].color if lines[name].label else "#5f5f5f")
    final.invert_yaxis()
    final.set(title="return of the final evaluation (number of seeds)")
    for axes, column in zip(curves, columns, strict=True):
        axes.set(title=f"{column} in training")
    curves[-1].set(xlabel="million environment steps")
    for axes in (*curves, final):
        dress(axes)
    bands = ", 95 % confidence bands" if any(len(group) > 1 for group in groups.values()) else ""
    figure.suptitle(f"{runs[0].summary['env']}: means over seeds{bands}", fontsize=TITLE)
    for axes, column in zip(curves, columns, strict=True):
        label_curves(axes, ends[column], lines)
    save(figure, path)


def comparison_table(runs: Sequence[Run]) -> str:
    """Final scores of every memory as a Markdown table, the best first.

    Args:
        runs: finished runs of one task.

    Returns:
        The table; intervals are 95 % confidence intervals of the mean over seeds, where there is
        more than one.

    Raises:
        ValueError: as `plot_comparison`.
    """
    groups = _by_memory(runs)
    lines = [
        "| memory | seeds | steps | return (95 % interval) | success (95 % interval) | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(groups, key=lambda name: -mean_of(_scores(groups[name]))):
        group = groups[name]
        success = [run.summary["eval_success"] for run in group]
        rate = with_interval(100 * np.array(success), " %") if None not in success else ""
        minutes = np.mean([run.summary["seconds"] for run in group]) / 60
        lines.append(
            f"| `{name}` | {len(group)} | {group[0].summary['frames']:,} | "
            f"{with_interval(_scores(group))} | {rate} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def _repeated(path: Path) -> tuple[tuple[str, ...], str]:
    """Lines of a `config.yaml` that repetitions of a run share, and the name of its algorithm."""
    if not path.exists():
        return (), ""
    config: Any = OmegaConf.load(path)
    algo = str(config.get("algo", {}).get("_target_", "")).rpartition(".")[2]
    for place in (config, config.get("experiment", {})):
        for key in ("seed", "run_dir", "command"):
            place.pop(key, None)
    return tuple(OmegaConf.to_yaml(config).splitlines()), algo


def _by_memory(runs: Sequence[Run]) -> dict[str, list[Run]]:
    if not runs:
        raise ValueError("there are no runs to compare")
    tasks = sorted({run.summary["env"] for run in runs})
    if len(tasks) > 1:
        raise ValueError(f"the runs are of several tasks, {tasks}: compare one task at a time")
    several = len({run.algo for run in runs}) > 1
    groups: dict[str, list[Run]] = {}
    for run in runs:
        name = f"{run.summary['memory']}, {run.algo}" if several else run.summary["memory"]
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        lengths = {run.summary["frames"] for run in group}
        if len(lengths) > 1:
            raise ValueError(f"runs of {name} differ in length, {sorted(lengths)} frames")
        first = set(group[0].config)
        for run in group:
            other = set(run.config)
            if first != other:
                lines = [line.strip() for line in (*sorted(first - other), *sorted(other - first))]
                raise ValueError(
                    f"runs of {name} differ in more than their seed, so they cannot be averaged: "
                    f"{lines}; compare them in two calls"
                )
        seeds = [run.summary["seed"] for run in group]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"runs of {name} have the same seed {twice}; leave one of each out")
    return groups


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of a file of metrics, each of shape `[updates]`."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


def with_interval(values: np.ndarray, unit: str = "") -> str:
    """Mean and interval, to three digits."""
    mean = f"{_three_digits(float(values.mean()))}{unit}"
    if len(values) == 1:
        return mean
    low, high = map(float, confidence_band(values))
    return f"{mean} ({_three_digits(low)} to {_three_digits(high)})"


def _three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(digits, 0), 4)}f}"


def _scores(group: Sequence[Run]) -> np.ndarray:
    return np.array([run.summary["eval_return"] for run in group], dtype=np.float64)


def mean_of(values: np.ndarray, axis: int = 0) -> Any:
    """Mean without NaN; NaN where there is nothing else."""
    count = (~np.isnan(values)).sum(axis)
    return np.where(count, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over the last few updates of every update, without NaN."""
    width = max(1, round(_SMOOTH * len(values)))
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    return mean_of(np.lib.stride_tricks.sliding_window_view(padded, width).T)
