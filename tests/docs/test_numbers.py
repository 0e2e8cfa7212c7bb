"""Numbers in tables of results stand in the raw data that their page names.

A table that a page includes is made again from its raw data. In a table that is written by hand,
each number has to be a value of the records about what the row names in backticks, or their mean,
smallest, largest or count, rounded as it is printed. A table whose numbers have no raw data stands
below a comment that says why: `<!-- no-raw: reason -->`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from docs.pictures import popgym_mean
from tests.benchmarks import envs, gym, latency, memories, ranks, scan, spans, workers
from tests.docs.test_code_blocks import BLOCK, ROOT
from torchrl_shm.figures import comparison_table, load_runs, load_suite, suite_table
from torchrl_shm.tools import memories as sizes

DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
PAGES = [
    *sorted(RESULTS.glob("*.md")),
    *sorted((DOCS / "memories").glob("*.md")),
    *(DOCS / name for name in ("tasks/index.md", "concepts/scan.md", "concepts/backends.md")),
    DOCS / "kernels.md",
]
INCLUDE = re.compile(r'^ *--8<-- "(docs/[\w/]+\.md)"$', re.M)
RAW = re.compile(r"docs/(?:results|pictures)/[\w/.]+")
TABLE = re.compile(r"(?P<skip><!-- no-raw: \S.*? -->\s*\n)?(?P<rows>(?:^ *\|.*\|\n)+)", re.M)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,_]*(?:\.\d+)?(?:e-?\d+)?(?P<percent> %)?(?![\w.]*\w)")
# what records are about, besides numbers
KEYS = ("memory", "env", "task", "variant", "name", "shape", "batch", "steps", "lmbda")

Record = dict[str, Any]


def sizes_table(size: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        sizes.main(["--size", size])
    return text.getvalue()


def read_json(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def scan_table() -> str:
    keys = ["shape", "name", "train_ms", "forward_ms", "ratio", "peak_mb"]
    return scan.report(read_json("scan/cpu.json"), keys)


MADE: dict[str, Callable[[], str]] = {
    "memories/wind.md": lambda: comparison_table(load_runs([RESULTS / "memories" / "wind"])),
    "memories/wind_long.md": lambda: comparison_table(
        load_runs([RESULTS / "memories" / "wind_long"])
    ),
    "memories/speed.md": lambda: memories.report(read_json("memories/speed.json")["rows"]),
    "memories/speed_small.md": lambda: memories.report(
        read_json("memories/speed_small.json")["rows"]
    ),
    "memories/sizes_own.md": lambda: sizes_table("own"),
    "memories/sizes_params.md": lambda: sizes_table("params"),
    "memories/sizes_state.md": lambda: sizes_table("state"),
    "memories/latency.md": lambda: latency.report(read_json("memories/latency.json")),
    "paper_credit/table.md": lambda: suite_table(load_suite(RESULTS / "paper_credit")),
    "no_time/table.md": lambda: suite_table(load_suite(RESULTS / "no_time")),
    "paper_meta/table.md": lambda: suite_table(load_suite(RESULTS / "paper_meta")),
    "paper_popgym/table.md": lambda: suite_table(load_suite(RESULTS / "paper_popgym")),
    "paper_popgym/sampled.md": popgym_mean.make_table,
    "policy_gradients/table.md": lambda: suite_table(load_suite(RESULTS / "policy_gradients")),
    "sac/table.md": lambda: suite_table(load_suite(RESULTS / "sac")),
    "scaling/ranks.md": lambda: ranks.report(read_json("scaling/ranks.json")),
    "scaling/workers.md": lambda: workers.report(read_json("scaling/workers.json")),
    "scan/cpu.md": scan_table,
    "spans/spans.md": lambda: spans.summarize(list(records(RESULTS / "spans/spans.csv")), 600),
    "tasks/gym_speed.md": lambda: gym.report(read_json("tasks/gym_speed.json")),
    "tasks/speed.md": lambda: envs.report(read_json("tasks/speed.json")),
}
# what a measurement writes itself, or what another test makes again
OTHERS = {
    "docs/results/memories/probe.md",
    "docs/results/scan/accuracy.md",
    "docs/results/scan/gpu_model.md",
    "docs/results/tasks/scores.md",
    "docs/pictures/calibration.md",
    "docs/pictures/losses.md",
    "docs/pictures/presets.md",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def records(path: Path) -> Iterator[Record]:
    """What a raw file, or a folder of raw files, tells."""
    if path.is_dir():
        for file in sorted(path.rglob("summary.*")):
            yield from records(file)
    elif path.suffix == ".csv":
        with open(path, newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".json":
        found = json.loads(path.read_text())
        found = found.get("rows", [found]) if isinstance(found, dict) else found
        yield from found
    elif path.suffix == ".md":
        head, _, *rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
        for row in rows:
            yield dict(zip(cells(head), cells(row), strict=False))


def values(found: list[Record]) -> set[float]:
    """All numbers of records, and mean, extremes and count of those that differ in a seed."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for record in found:
        columns = groups.setdefault(tuple(str(record.get(key)) for key in KEYS), {})
        for key, value in record.items():
            for match in NUMBER.finditer(str(value)):
                number = float(match[0].removesuffix(" %").replace(",", "").replace("_", ""))
                scale = 100 if match["percent"] else 1
                columns.setdefault(key, []).append(number / scale)
    known: set[float] = set()
    for columns in groups.values():
        for x in columns.values():
            known |= {*x, sum(x) / len(x), len(x)}
    return known


def is_known(printed: re.Match[str], known: set[float]) -> bool:
    """Whether a printed number is a known one, rounded."""
    text = printed[0].removesuffix(" %").replace(",", "").replace("_", "")
    x, decimals = float(text), len(text.partition(".")[2])
    scale = 100 if printed["percent"] else 1
    return any(
        abs(scale * y - x) <= 0.5 * 10**-decimals + 1e-9 or float(f"{scale * y:.3g}") == x
        for y in known
    )


def unknown(page: str) -> list[str]:
    """Rows of the tables of a page with numbers that are not in the raw data that it names."""
    names = {path.rstrip("./") for path in RAW.findall(page)}
    read = [record for name in sorted(names) for record in records(ROOT / name)]
    # a page may name a file and its folder
    raw = list({json.dumps(record, sort_keys=True): record for record in read}.values())
    missing: list[str] = []
    for table in TABLE.finditer(BLOCK.sub("", page)):
        if table["skip"]:
            continue
        head, _, *rows = table["rows"].splitlines()
        # what others have measured is quoted
        own = [not name.startswith("paper") for name in cells(head)]
        for row in rows:
            about = set(re.findall(r"`([\w/]+)`", row))
            matches = [{str(x).strip("`") for x in record.values()} for record in raw]
            found = [r for r, said in zip(raw, matches, strict=True) if about <= said]
            found = found or [r for r, said in zip(raw, matches, strict=True) if about & said]
            known = values(found)
            plain = [
                re.sub(r"`.*?`|\]\(.*?\)", "", cell)
                for cell, mine in zip(cells(row), own, strict=True)
                if mine
            ]
            missing += [
                f"{number[0]} in {row.strip()}"
                for cell in plain
                for number in NUMBER.finditer(cell)
                if not is_known(number, known)
            ]
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_numbers_of_tables_are_in_the_raw_data(page: Path) -> None:
    assert unknown(page.read_text()) == []


@pytest.mark.parametrize("name", MADE)
def test_tables_are_made_from_the_raw_data(name: str) -> None:
    assert (RESULTS / name).read_text().strip() == MADE[name]().strip()


def test_every_included_table_is_checked() -> None:
    included = {name for page in DOCS.rglob("*.md") for name in INCLUDE.findall(page.read_text())}
    assert included == {f"docs/results/{name}" for name in MADE} | OTHERS


def test_wrong_numbers_are_found() -> None:
    page = """\
        Raw data: `docs/results/tasks/wind_short.csv`.

        | memory | return | success | seeds |
        |---|---|---|---|
        | `shm` | 76.7 | 92.4 % | 5 |
        | `gru` | {} | 91.6 % | {} |
        """.replace("        ", "")
    assert unknown(page.format("74.9", "3")) == []
    assert len(unknown(page.format("75.9", "4"))) == 2
    # of another memory
    assert len(unknown(page.format("76.7", "3"))) == 1
    skipped = page.replace("| memory", "<!-- no-raw: made up -->\n| memory")
    assert unknown(skipped.format("76.9", "4")) == []
