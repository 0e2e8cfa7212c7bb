"""Sets of runs: only what is missing is run, and what is finished is kept."""

from __future__ import annotations

import csv
import signal
from functools import partial
from pathlib import Path

import pytest

from tests._processes import Child, wait_until
from tests.configs._helpers import compose_recipe
from tests.recipes._helpers import TINY
from tests.tools._helpers import tool
from torchrl_shm.configs import SUITES, SuiteRun
from torchrl_shm.tools import suite

ROOT = Path(__file__).parents[2]
RUNS = [SuiteRun("wind", name, 0, "short", TINY) for name in ("mlp", "gru")]
# leaves what a recipe leaves, and spares the seconds of its imports
RECIPE = """
import json
import shlex
import sys
from pathlib import Path

given = dict(option.split("=", 1) for option in sys.argv[1:])
folder = Path(given["hydra.run.dir"])
command = shlex.join(["python", "recipes/ppo_shm.py", *sys.argv[1:]])
config = {"env": {}, "experiment": {}, "command": command}
(folder / "config.yaml").write_text(json.dumps(config))
(folder / "metrics.csv").write_text("frames,return,seconds\\n160,nan,0.5\\n320,1.5,1.0\\n")
names = {key: given[key] for key in ("env", "memory")}
numbers = {"seed": 0, "frames": 320, "seconds": 1.0, "eval_return": 2.5, "eval_success": 0.5}
(folder / "summary.json").write_text(json.dumps(names | numbers))
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr(suite, "SUITES", {"short": RUNS})
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "ppo_shm.py").write_text(RECIPE)
    return [
        "short", "--runs", tmp_path / "runs", "--results", tmp_path / "results",
        "--recipes", tmp_path / "recipes",
    ]  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_distinct() -> None:
    for name, runs in SUITES.items():
        assert len({run.name for run in runs}) == len(runs), name


def test_runs_compose() -> None:
    # composing all of them would take minutes
    some = {(name, run.recipe, run.options): run for name, runs in SUITES.items() for run in runs}
    assert len(some) > 10
    for run in some.values():
        algo = run.recipe.removesuffix("_shm")
        network = "soft_actor_critic" if algo == "sac" else "actor_critic"
        config = compose_recipe(*run.overrides, recipe=run.recipe, algo=algo, network=network)
        assert config.experiment.seed == run.seed


def test_only_what_is_missing_is_run(places: list[object], tmp_path: Path) -> None:
    result = tool("suite", "run", *places, "--only", "mlp")
    assert result.code == 0, result.stderr
    assert "1 of 1 done" in result.stdout
    before = (tmp_path / "runs/short" / RUNS[0].name / "metrics.csv").stat().st_mtime_ns
    assert tool("suite", "run", *places, "--jobs", "2").code == 0
    assert (tmp_path / "runs/short" / RUNS[0].name / "metrics.csv").stat().st_mtime_ns == before
    rows = read(tmp_path / "results/short/summary.csv")
    assert [row["memory"] for row in rows] == ["gru", "mlp"]
    assert {row["variant"] for row in rows} == {"short"}
    assert all(float(row["frames"]) > 0 and row["commit"] for row in rows)
    assert "memory=gru" in rows[0]["command"]
    assert "hydra.run.dir" not in rows[0]["command"]
    kept = read(tmp_path / "results/short" / f"{RUNS[0].name}.csv")
    assert kept == read(tmp_path / "runs/short" / RUNS[0].name / "metrics.csv")


def test_results_outlive_the_runs(places: list[object], tmp_path: Path) -> None:
    """Folders of runs come and go; what was collected is added to."""
    results = tmp_path / "results/short"
    results.mkdir(parents=True)
    row = dict.fromkeys(suite._COLUMNS, "1") | {"run": "an old one"}
    suite._write(results / "summary.csv", list(row), [list(row.values())])
    assert tool("suite", "collect", *places).code == 0
    assert read(results / "summary.csv") == [row]


def test_what_was_collected_is_finished(places: list[object], tmp_path: Path) -> None:
    """On another machine, too, where the folders of the runs are not."""
    results = tmp_path / "results/short"
    row = {"run": RUNS[0].name, "eval_return": "3.5", "eval_success": "", "seconds": "60",
           "commit": "abc"}  # fmt: skip
    rows = [[row.get(key, "") for key in suite._COLUMNS]]
    suite._write(results / "summary.csv", list(suite._COLUMNS), rows)
    result = tool("suite", "run", *places)
    assert result.code == 0, result.stderr
    assert not (tmp_path / "runs/short" / RUNS[0].name).exists()
    assert (tmp_path / "runs/short" / RUNS[1].name / "summary.json").exists()
    assert f"{RUNS[0].name:<50} return 3.50\n" in result.stdout
    assert "2 of 2 done" in result.stdout
    assert "of several commits: " in result.stdout
    kept = [row["run"] for row in read(results / "summary.csv")]
    assert kept == sorted(run.name for run in RUNS)


def test_a_failure_is_named(places: list[object], tmp_path: Path) -> None:
    broken = tmp_path / "ppo_shm.py"
    broken.write_text("raise SystemExit('no such thing')")
    result = tool("suite", "run", *places[:-1], tmp_path)
    assert result.code == 2
    assert f"{RUNS[0].name}, {RUNS[1].name} failed" in result.stderr
    assert "no such thing" in (tmp_path / "runs/short" / RUNS[0].name / "log").read_text()


def test_what_was_stopped_goes_on(
    places: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipe itself, in processes of its own."""
    run = SuiteRun("wind", "mlp", 0, options=(*TINY[1:], "experiment.total_frames=16000"))
    monkeypatch.setattr(suite, "SUITES", {"short": [run]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["run", *map(str, places[:-1]), str(ROOT / "recipes")]
    metrics = tmp_path / "runs/short" / run.name / "metrics.csv"
    with Child(partial(suite.main, arguments), tmp_path / "out") as child:
        wait_until(lambda: metrics.exists() and read(metrics), child, seconds=120)
        child.signal(signal.SIGTERM)
        assert child.wait() == 0, child.text()
    stopped = read(metrics)
    assert stopped
    assert not metrics.with_name("summary.json").exists()
    result = tool("suite", *arguments)
    assert result.code == 0, result.stderr
    assert read(metrics)[: len(stopped)] == stopped
    assert metrics.with_name("summary.json").exists()
    (row,) = read(tmp_path / "results/short/summary.csv")
    assert (row["memory"], row["frames"]) == ("mlp", "16000")
    assert "memory=mlp" in row["command"]
    assert "hydra.run.dir" not in row["command"]
    assert read(tmp_path / "results/short" / f"{run.name}.csv") == read(metrics)


def test_long_metrics_are_thinned(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("update\n" + "".join(f"{i}\n" for i in range(999)))
    header, rows = suite._thinned(path)
    assert header == ["update"]
    assert 100 < len(rows) <= 200
    assert (rows[0], rows[-1]) == (["0"], ["998"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nothing"], "there is no suite 'nothing'"),
        (["status", "paper_meta", "--only", "chess"], "no run of paper_meta has 'chess'"),
        (["run", "paper_meta", "--jobs", "0"], "--jobs: 0 must be at least 1"),
        (["run", "paper_meta", "--recipes", "nowhere"], "nowhere/ppo_shm.py is not there"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    result = tool("suite", *arguments)
    assert result.code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
