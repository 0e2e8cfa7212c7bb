"""Tables of results are what the scripts make of the raw numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import envs
from tests.docs.test_code_blocks import ROOT

SPEED = ROOT / "docs" / "results" / "tasks" / "speed.json"


def test_speed_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "speed.json"
    copy.write_bytes(SPEED.read_bytes())
    monkeypatch.setattr(sys, "argv", ["envs", "--from", str(copy)])
    envs.main()
    table = copy.with_suffix(".md").read_text()
    assert table == capsys.readouterr().out
    assert table == SPEED.with_suffix(".md").read_text()
    # the numbers are only read
    assert copy.read_bytes() == SPEED.read_bytes()


def test_what_misses_its_goal_is_named() -> None:
    ratios = {
        "AutoencodeEasy": (4.96, 50.0),
        "AutoencodeHard": (4.0, 49.96),
        "BattleshipEasy": (5.0, 60.0),
        "BattleshipHard": (12.9, 50.0),
    }
    rows = [
        {"task": name, "ratio B=64": small, "ratio B=1024": large}
        for name, (small, large) in ratios.items()
    ]
    table, few, many = envs.report([*rows, {"task": "Wind", "ours B=64": 2e6}]).split("\n\n")
    # never more than it is
    assert "| AutoencodeEasy | 4.9 | 50 |" in table
    assert "| AutoencodeHard | 4.0 | 49 |" in table
    assert "| BattleshipHard | 12 | 50 |" in table
    assert table.splitlines()[-1] == "| Wind |  |  | 75,000 |"
    # a family that misses it at all levels, and a level
    assert few == "Less than 5 times the original at `B = 64`: Autoencode (4.0)."
    assert many == "Less than 50 times the original at `B = 1024`: AutoencodeHard (49)."
    assert json.loads(SPEED.read_text())[0]["task"] in table
