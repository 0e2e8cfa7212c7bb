"""What pages of results say of each preset is what the raw data and the code say."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from tests.docs.test_code_blocks import ROOT
from tests.docs.test_numbers import unknown

SCRIPT = ROOT / "docs" / "pictures" / "sheets.py"
RESULTS = ROOT / "docs" / "results"
SECTION = re.compile(r"^--8<-- \[start:(\w+)\]\n(.*?)^--8<-- \[end:\1\]$", re.M | re.S)
SECTIONS = dict(SECTION.findall(SCRIPT.with_suffix(".md").read_text()))


@pytest.fixture(scope="module")
def sheets() -> dict[str, Any]:
    return run_path(str(SCRIPT))


def test_sheets_are_those_of_the_raw_data(sheets: dict[str, Any]) -> None:
    command = f"run PYTHONPATH=. python {SCRIPT.relative_to(ROOT)}"
    assert SCRIPT.with_suffix(".md").read_text() == sheets["make_sheets"](), command


def test_every_section_is_on_the_page_of_its_runs(sheets: dict[str, Any]) -> None:
    for source, link in sheets["SOURCES"].items():
        name = source.partition("/")[0]
        (page,) = re.findall(r"\((\w+\.md)\)", link)
        assert f'--8<-- "docs/pictures/sheets.md:{name}"' in (RESULTS / page).read_text()
    assert {source.partition("/")[0] for source in sheets["SOURCES"]} == {*SECTIONS}


def test_numbers_stand_in_the_raw_data(sheets: dict[str, Any]) -> None:
    for source in sheets["SOURCES"]:
        text = SECTIONS[source.partition("/")[0]]
        parts = re.split(r"^### `(\w+)`$", text, flags=re.M)
        # a row of a section is about its preset
        for preset, part in zip(["", *parts[1::2]], parts[0::2], strict=True):
            about = rf"| `\1`{f' `{preset}`' * bool(preset)} |"
            part = re.sub(r"^\| `(\w+)` \|", about, part, flags=re.M)
            assert unknown(f"docs/results/{source}\n{part}") == []
    wrong = SECTIONS["memories"].replace("53.1 (", "53.3 (")
    assert len(unknown(f"docs/results/memories/wind\n{wrong}")) == 1


def test_commands_are_those_of_the_runs(sheets: dict[str, Any]) -> None:
    for source, presets in sheets["load"]().items():
        text = SECTIONS[source.partition("/")[0]].replace("\\\n", "")
        printed = [set(line.split()) for line in text.splitlines() if "python recipes" in line]
        for run in (run for runs in presets.values() for run in runs):
            found = []
            for words in printed:
                chosen = dict(word.split("=", 1) for word in words if "=" in word)
                memories = chosen["memory"].split(",")
                seeds = chosen.get("experiment.seed", "0").split(",")
                rest = {w for w in words if not w.startswith(("memory=", "experiment.seed="))}
                own = {*run["command"].split()} - {
                    f"memory={run['memory']}", f"experiment.seed={run['seed']}",
                }  # fmt: skip
                found.append(
                    rest - {"-m"} == own and run["memory"] in memories and str(run["seed"]) in seeds
                )
            assert sum(found) == 1, run["command"]


def metrics_of(source: str) -> list[Path]:
    folder = (RESULTS / source).with_suffix("")
    folder = folder if folder.is_dir() else folder.parent
    return sorted(path for path in folder.rglob("*.csv") if path.name != "summary.csv")


@pytest.mark.parametrize(
    "source",
    ["paper_credit/summary.csv", "paper_popgym/summary.csv", "paper_meta/summary.csv",
     "memories/wind"],
)  # fmt: skip
def test_values_are_those_with_which_it_was_trained(sheets: dict[str, Any], source: str) -> None:
    presets = sheets["load"]()[source]
    values = {
        preset: sheets["DEFAULTS"] | sheets["get_values"](preset, runs)
        for preset, runs in presets.items()
    }
    paths = metrics_of(source)
    assert len(paths) == sum(map(len, presets.values()))
    for path in paths:
        (value,) = [
            x for name, x in values.items() if len(values) == 1 or path.stem.startswith(f"{name}-")
        ]
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        assert float(rows[0]["learning_rate"]) == value["algo.learning_rate"]
        batch = value["algo.rollout_length"] * value["experiment.num_envs"]
        assert int(rows[0]["frames"]) == batch
        assert int(rows[-1]["frames"]) == batch * -(-value["experiment.total_frames"] // batch)


def test_few_seeds_and_ranges(sheets: dict[str, Any]) -> None:
    assert sheets["show_seeds"]([10, 11, 12]) == "10 to 12"
    assert sheets["show_seeds"]([0, 1]) == "0, 1"
    assert sheets["show_seeds"]([0, 2, 3]) == "0, 2, 3"
    assert sorted(["a_250", "a_100", "a"], key=sheets["natural"]) == ["a", "a_100", "a_250"]
