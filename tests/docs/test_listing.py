"""The listing of results by preset is that of the raw data."""

from __future__ import annotations

import json
from runpy import run_path

from tests.docs.test_code_blocks import ROOT
from torchrl_shm.configs import ENVS

SCRIPT = ROOT / "docs" / "pictures" / "presets.py"


def test_listing_is_that_of_the_raw_data() -> None:
    listing = run_path(str(SCRIPT))["make_listing"]()
    command = f"run PYTHONPATH=. python {SCRIPT.relative_to(ROOT)}"
    assert SCRIPT.with_suffix(".md").read_text() == listing, command


def test_every_run_is_of_a_preset() -> None:
    """A run under another name would be left out."""
    assert {preset for preset, _ in run_path(str(SCRIPT))["count_seeds"]()} <= {*ENVS}


def test_no_raw_data_of_runs_are_left_out() -> None:
    results = ROOT / "docs" / "results"
    runs = {
        path for path in results.rglob("*.csv")
        if "eval_return" in path.read_text().partition("\n")[0]
    }  # fmt: skip
    runs |= {
        path.parents[1] for path in results.rglob("summary.json")
        if "eval_return" in json.loads(path.read_text())
    }  # fmt: skip
    listed = {results / source for source in run_path(str(SCRIPT))["SOURCES"]}
    # single runs and those of other algorithms than PPO, which have pages of their own
    assert runs - listed == {
        results / "memories" / "wind_long", results / "sac" / "wind.csv",
        results / "sac" / "summary.csv", results / "policy_gradients" / "summary.csv",
        results / "no_time" / "summary.csv",
        results / "tasks" / "wind_encoder.csv", results / "tasks" / "wind_lambda.csv",
        results / "tasks" / "wind_short.csv", results / "tasks" / "point_robot_search.csv",
        results / "tasks" / "popgym_sequences.csv", results / "tasks" / "popgym_search.csv",
        results / "tasks" / "start.csv", results / "tasks" / "corridors.csv",
        results / "tasks" / "wind_hard_options.csv",
        results / "tasks" / "point_robot_options.csv", results / "tasks" / "popgym_keys.csv",
        results / "tasks" / "point_robot_repeat.csv",
        results / "tasks" / "forget.csv", results / "tasks" / "key_to_door_500_large_batches.csv",
        results / "tasks" / "key_to_door_500_one_lambda.csv", results / "ablation" / "summary.csv",
    }  # fmt: skip
