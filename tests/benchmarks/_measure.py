"""Timing, memory and idleness, for benchmarks that print ratios."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def wait_until_idle(limit: float) -> float:
    """Wait until other processes leave the CPUs alone, for at most `limit` seconds.

    Returns:
        The share of the CPUs that others used at the end, in [0, 1].
    """
    end = time.monotonic() + limit
    while True:
        used = _cpu_use(1.0)
        if used < 0.1 or time.monotonic() > end:
            return used
        time.sleep(2)


def _cpu_use(seconds: float) -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def read() -> list[int]:
        return [int(x) for x in stat.read_text().splitlines()[0].split()[1:9]]

    before = read()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, read(), strict=True)]
    # idle and waiting for disks are the fourth and the fifth
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))


def milliseconds(function: Callable[[], object], device: str, budget: float = 3.0) -> float:
    """Median time of a call, over as many calls as fit into `budget` seconds, 50 at most."""
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: list[float] = []
    begin = time.perf_counter()
    # the first call is not counted unless it is the only one that there is time for
    while len(times) < 2 or (len(times) < 51 and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        function()
        sync()
        times.append((time.perf_counter() - start) * 1e3)
        if len(times) == 1 and times[0] > budget * 1e3:
            return times[0]
    return statistics.median(times[1:])


def peak_megabytes(function: Callable[[], object], device: str) -> float:
    """Memory at the peak of a call beyond what was in use before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        # forgets the peak so far
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def number(value: float) -> str:
    """Three digits, written out: `85,300` rather than `8.53e+04`."""
    return f"{float(f'{value:.3g}'):,.10g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_rows(path: Path | None, num_keys: int) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a file of results by their first columns; none where there is no file."""
    if path is None or not path.exists():
        return {}
    with open(path, newline="") as file:
        return {tuple(row.values())[:num_keys]: row for row in csv.DictReader(file)}


def write_rows(path: Path | None, rows: list[dict[str, str]]) -> None:
    """Write a file of results, with its folder; nothing where there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_numbers(path: Path | None, numbers: Any, text: str) -> None:
    """Write numbers as JSON, and the table of them beside it; nothing where there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    path.with_suffix(".md").write_text(text + "\n")
