"""The recipe as a user runs it, and what stops it."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.data import Unbounded
from torchrl.modules import recurrent_mode

from recipes import ppo_shm
from tests.recipes._helpers import (
    FRAMES,
    MEMORIES,
    TINY,
    UPDATES,
    Result,
    command,
    process,
    read_metrics,
    train,
    without_time,
)
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.training import RunFolder

COLUMNS = (
    "update", "frames", "return", "success", "max_ratio", "learning_rate", "loss_objective",
    "loss_critic", "kl_approx", "clip_fraction", "grad_norm", "seconds", "frames_per_second",
)  # fmt: skip


@pytest.fixture(params=MEMORIES)
def run(request: pytest.FixtureRequest, finished: Any) -> tuple[str, Path, Result]:
    return request.param, *finished(request.param)


class TestRun:
    def test_last_line_is_the_summary(self, run: tuple[str, Path, Result]) -> None:
        memory, folder, result = run
        summary = result.summary
        assert list(summary) == [
            "env", "memory", "seed", "frames", "seconds", "eval_return", "eval_success",
        ]  # fmt: skip
        assert summary == json.loads((folder / "summary.json").read_text())
        assert (summary["env"], summary["memory"], summary["seed"]) == ("wind", memory, 0)
        assert summary["frames"] == FRAMES
        assert summary["seconds"] > 0
        assert 0 <= summary["eval_return"] <= 30
        assert 0 <= summary["eval_success"] <= 1

    def test_folder_holds_the_files_directly(self, run: tuple[str, Path, Result]) -> None:
        _, folder, _ = run
        files = {path.name for path in folder.iterdir()}
        assert files == {
            "metrics.csv", "config.yaml", "checkpoints", "summary.json", "learning_curve.png",
        }  # fmt: skip

    def test_metrics_have_a_row_per_update(self, run: tuple[str, Path, Result]) -> None:
        _, folder, _ = run
        rows = read_metrics(folder)
        assert tuple(rows[0]) == COLUMNS
        assert [int(row["update"]) for row in rows] == list(range(UPDATES))
        assert [int(row["frames"]) for row in rows] == [160 * (i + 1) for i in range(UPDATES)]
        # the first batch ends before the first episode does
        assert [math.isnan(float(row["return"])) for row in rows][:2] == [True, False]
        finite = set(COLUMNS) - {"return", "success"}
        assert all(math.isfinite(float(row[name])) for row in rows for name in finite)
        assert float(rows[-1]["seconds"]) > float(rows[0]["seconds"]) > 0

    def test_ratio_of_the_first_minibatch_is_one(self, run: tuple[str, Path, Result]) -> None:
        _, folder, _ = run
        assert all(abs(float(row["max_ratio"]) - 1) <= 1e-3 for row in read_metrics(folder))

    def test_learning_rate_falls_to_zero(self, run: tuple[str, Path, Result]) -> None:
        _, folder, _ = run
        rates = [float(row["learning_rate"]) for row in read_metrics(folder)]
        assert rates == pytest.approx([rates[0] * (1 - i / UPDATES) for i in range(UPDATES)])

    def test_checkpoint_is_data_and_has_all_parts(self, run: tuple[str, Path, Result]) -> None:
        _, folder, _ = run
        state = RunFolder(folder).load_checkpoint()
        assert set(state) == {
            "operator", "optimizer", "schedule", "rows", "rng",
            "updates", "frames", "seconds", "return", "metrics",
        }  # fmt: skip
        assert (state["updates"], state["frames"]) == (UPDATES, FRAMES)
        assert state["metrics"] == (folder / "metrics.csv").read_text()

    def test_no_bar_where_nobody_looks(self, run: tuple[str, Path, Result]) -> None:
        assert run[2].stderr == ""


def test_bar_and_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", *TINY, "algo.total_frames=170", terminal=True)
    assert "320/320" in result.stderr
    assert "return=" in result.stderr
    assert "success=" in result.stderr
    (summary,) = tmp_path.glob("outputs/ppo_shm/*/*/summary.json")
    assert json.loads(summary.read_text())["frames"] == 320


def test_equal_seeds_give_equal_metrics(tmp_path: Path, finished: Any) -> None:
    """In another process, too."""
    here, result = finished("shm")
    cwd, there, other = (tmp_path / name for name in ("cwd", "there", "other"))
    cwd.mkdir()
    found = process("ppo_shm.py", *TINY, f"hydra.run.dir={there}", cwd=cwd)
    assert (found.code, found.stderr) == (0, "")
    assert without_time(there) == without_time(here)
    assert found.summary["eval_return"] == result.summary["eval_return"]
    assert list(cwd.iterdir()) == []
    command("ppo_shm.py", *TINY, "seed=1", f"hydra.run.dir={other}")
    assert without_time(other) != without_time(here)


def test_sweep_makes_a_folder_per_combination(tmp_path: Path) -> None:
    arguments = ("-m", "memory=shm,gru", "seed=0,1", *TINY, "algo.total_frames=160")
    result = command("ppo_shm.py", *arguments, f"hydra.sweep.dir={tmp_path}")
    assert result.code == 0, result.stderr
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    found = {(summary["memory"], summary["seed"]) for summary in summaries}
    assert len(summaries) == 4
    assert found == {("shm", 0), ("shm", 1), ("gru", 0), ("gru", 1)}
    assert all((path.parent / "metrics.csv").exists() for path in tmp_path.glob("*/summary.json"))


def test_collecting_in_a_worker(tmp_path: Path) -> None:
    arguments = (*TINY, "collector=multi_sync", "collector.num_workers=1")
    result = command("ppo_shm.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    check_workers(result, tmp_path / "run")


@pytest.mark.slow
def test_collecting_in_workers_repeats(tmp_path: Path) -> None:
    for name in ("first", "second"):
        arguments = (*TINY, "collector=multi_sync", f"hydra.run.dir={tmp_path / name}")
        check_workers(command("ppo_shm.py", *arguments), tmp_path / name)
    assert without_time(tmp_path / "first") == without_time(tmp_path / "second")


def check_workers(result: Result, folder: Path) -> None:
    assert result.code == 0, result.stderr
    assert result.summary["frames"] == FRAMES
    rows = read_metrics(folder)
    assert len(rows) == UPDATES
    assert all(abs(float(row["max_ratio"]) - 1) <= 1e-3 for row in rows)
    assert torch.get_num_threads() == 1
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_agent_with_memory_learns(tmp_path: Path) -> None:
    """A goal that is large enough to be learned in a minute."""
    results = {}
    for frames in (1, 150_000):
        result = command(
            "ppo_shm.py", "env.goal_radius=0.1", "env.max_steps=50", "algo.num_envs=64",
            "algo.rollout_length=50", f"algo.total_frames={frames}",
            f"hydra.run.dir={tmp_path / str(frames)}",
        )  # fmt: skip
        results[frames] = result.summary["eval_return"]
    assert results[150_000] > 10 > 1 > results[1]


class TestHelp:
    def test_lists_groups_and_values(self) -> None:
        result = command("ppo_shm.py", "--help")
        assert result.code == 0
        for line in (
            "env: gym, key_to_door_{100,250,500,original}, memory_length, point_robot,",
            "    t_maze_active,",
            "popgym/Autoencode{Easy,Hard,Medium}",
            "wind, wind_hard, wind_original",
            "memory: dnc, elman, fast_weights,",
            "    shm_{constant,fixed,neural,",
            "size: own, params, state",
            "collector: multi_sync, single",
            "logger: csv, tensorboard, wandb",
            "  memory_size: 24",
            "  policy_keys:",
        ):
            assert line in result.stdout
        # follows from env, so nobody chooses it
        assert "tuned" not in result.stdout

    def test_shows_the_configuration(self) -> None:
        result = command("ppo_shm.py", "--cfg", "job", "memory=gru", "algo.epochs=7")
        assert result.code == 0
        assert "num_layers: 1" in result.stdout
        assert "epochs: 7" in result.stdout


class TestMistakes:
    """Each is answered before the first step, by name."""

    @pytest.mark.parametrize(
        ("override", "answers"),
        [
            ("memory=foo", ["'memory/foo'", *MEMORIES]),
            ("memory.backend=foo", ["backend", "'auto', 'reference', 'chunked'", "'foo'"]),
            ("memory.calibration=foo", ["calibration", "'random', 'fixed'", "'foo'"]),
            ("collector.backend=foo", ["'single' or 'multi_sync'", "'foo'"]),
            ("memory.memory_size=0", ["memory_size must be at least 1, got 0"]),
            ("memory.memory_size=big", ["'big'", "memory.memory_size"]),
            ("memory.size=3", ["'memory.size'", "not in"]),
            ("algo.gamma=1.5", ["algo.gamma=1.5 must be between 0 and 1"]),
            (
                "algo.sequences_per_minibatch=9",
                ["algo.sequences_per_minibatch=9", "algo.num_envs=8"],
            ),
            ("algo.policy_keys=[place]", ["place", "observation", "previous_action"]),
            ("algo.hidden_sizes=[wide]", ["hidden_sizes", "'wide'", "integer"]),
            ("env.num_train_tasks=0", ["num_train_tasks=0"]),
            ("seed=first", ["seed", "'first'", "integer"]),
        ],
    )
    def test_message(self, tmp_path: Path, override: str, answers: list[str]) -> None:
        result = command("ppo_shm.py", *TINY, override, f"hydra.run.dir={tmp_path}")
        assert result.code == 1
        assert result.stdout == ""
        for answer in answers:
            assert answer in result.stderr
        assert not (tmp_path / "metrics.csv").exists()

    @pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
    def test_logger_that_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.setitem(sys.modules, kind, None)
        result = command("ppo_shm.py", *TINY, f"logger={kind}", f"hydra.run.dir={tmp_path}")
        assert result.code == 1
        assert f'pip install -e ".[{kind}]"' in result.stderr


def test_extra_logger_gets_every_number(tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[str, float, int]] = []

        def log_scalar(self, name: str, value: float, step: int) -> None:
            self.calls.append((name, value, step))

    recorder = Recorder()
    train(tmp_path, logger=lambda run_dir: recorder)
    rows = read_metrics(tmp_path)
    expected = [(name, value, row["frames"]) for row in rows for name, value in row.items()]
    assert [(name, str(value), str(step)) for name, value, step in recorder.calls] == expected


class DropsGates(SHMModule):
    """Draws again in recurrent mode."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.recurrent_mode:
            tensordict.pop("theta_index", None)
        return super().forward(tensordict)


class DropsRowStart(SHMModule):
    """Starts every row with an empty memory."""

    def _row_start(self, *args: Any) -> None:
        return None


def gru_that_starts_empty(**options: Any) -> Any:
    module = make_rnn("gru", **options)
    forward = module.forward

    def broken(tensordict: TensorDictBase) -> TensorDictBase:
        if recurrent_mode():
            state = tensordict["recurrent_state"]
            tensordict["recurrent_state"] = torch.zeros_like(state)
        return forward(tensordict)

    module.forward = broken
    return module


@pytest.mark.parametrize("memory", [DropsGates, DropsRowStart, gru_that_starts_empty])
def test_memory_that_does_not_repeat_what_acted_stops_the_run(
    tmp_path: Path, memory: Callable[..., Any]
) -> None:
    with pytest.raises(RuntimeError, match=r"ratio .* is 1\.\d+ at most .* not 1: .*check_memory"):
        train(tmp_path, memory=memory, algo={"learning_rate": 1e-2, "total_frames": 3200})
    # right after the first updates, and with the numbers up to then on disk
    rows = read_metrics(tmp_path)
    assert 1 <= len(rows) <= 5
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("most", "mean"),
    [(1.02, 1.0), (0.98, 0.97), (1.0, 0.98), (float("nan"), 1.0), (float("inf"), 1.0)],
)
def test_ratio_may_only_round(most: float, mean: float) -> None:
    def term(most: float, mean: float) -> Any:
        return {"max_ratio": torch.tensor(most), "mean_ratio": torch.tensor(mean)}

    with pytest.raises(RuntimeError, match=f"is {most:.2g}.* at most and {mean:.2g}"):
        ppo_shm.check_ratio(term(most, mean))
    assert ppo_shm.check_ratio(term(1 + 1e-4, 1.0)) == pytest.approx(1.0001)


class Calm(WindEnv):
    """Has neither `success` nor `shaping`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        observations = self.observation_spec.clone()
        for key in ("success", "shaping"):
            if key in observations.keys():
                del observations[key]
        self.observation_spec = observations
        self.reward_spec = Unbounded(self.reward_spec.shape, device=self.device)

    def _emit(self, *args: Any) -> TensorDictBase:
        return super()._emit(*args).exclude("success", "shaping")


def test_task_without_success_and_shaping(tmp_path: Path) -> None:
    summary = train(tmp_path, env=partial(Calm, max_steps=30), algo={"total_frames": 480})
    assert summary["eval_success"] is None
    assert "success" not in read_metrics(tmp_path)[0]
    assert json.loads((tmp_path / "summary.json").read_text())["eval_success"] is None


def test_logs_have_the_reward_of_the_task_alone(tmp_path: Path) -> None:
    """Shaping changes what is learned, not what is reported."""
    env = partial(WindEnv, max_steps=20, goal_radius=1e-9, shaping_radii=(0.001, 10.0))
    train(tmp_path / "shaped", env=env, algo={"total_frames": 480})
    train(tmp_path / "plain", env=env, algo={"total_frames": 480, "shaping": 0.0})
    shaped, plain = read_metrics(tmp_path / "shaped"), read_metrics(tmp_path / "plain")
    assert {float(row["return"]) for row in shaped + plain} == {0.0}
    assert shaped[0]["loss_critic"] != plain[0]["loss_critic"]
