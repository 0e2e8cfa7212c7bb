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
from hydra_zen import builds, launch, make_config, zen
from tensordict import TensorDictBase
from torchrl.data import Unbounded

from recipes import ppo_shm
from tests.recipes._helpers import (
    FRAMES,
    FRAMES_PER_UPDATE,
    TINY,
    UPDATES,
    Result,
    command,
    process,
    read_metrics,
    saved_state,
    train,
    without_time,
)
from tests.training._helpers import MEMORIES
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import PPO
from torchrl_shm.envs import KeyToDoorEnv
from torchrl_shm.modules import make_mlp
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import (
    Experiment,
    RolloutCollector,
    RunFolder,
    SelfImitation,
    check_ratio,
)

COLUMNS = (
    "update", "frames", "return", "success", "max_ratio", "learning_rate", "loss_objective",
    "loss_critic", "kl_approx", "clip_fraction", "grad_norm", "seconds", "frames_per_second",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("elsewhere")


def check_metrics(folder: Path) -> None:
    rows = read_metrics(folder)
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["update"]) for row in rows] == list(range(UPDATES))
    assert [int(row["frames"]) for row in rows] == [
        FRAMES_PER_UPDATE * (i + 1) for i in range(UPDATES)
    ]
    # the first batch ends before the first episode does
    assert [math.isnan(float(row["return"])) for row in rows][:2] == [True, False]
    finite = set(COLUMNS) - {"return", "success"}
    assert all(math.isfinite(float(row[name])) for row in rows for name in finite)
    assert float(rows[-1]["seconds"]) > float(rows[0]["seconds"]) > 0
    # the policy of the loss is the policy that acted
    assert all(abs(float(row["max_ratio"]) - 1) <= 1e-4 for row in rows)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([rates[0] * (1 - i / UPDATES) for i in range(UPDATES)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("run")
    return folder, command("ppo_shm.py", *TINY, f"hydra.run.dir={folder}")


class TestRun:
    def test_what_is_left(self, run: tuple[Path, Result]) -> None:
        folder, result = run
        # no bar where nobody looks
        assert (result.code, result.stderr) == (0, "")
        assert {path.name for path in folder.iterdir()} == {
            "metrics.csv", "config.yaml", "checkpoints", "summary.json", "learning_curve.png",
        }  # fmt: skip
        # the last line
        summary = result.summary
        assert summary == json.loads((folder / "summary.json").read_text())
        assert list(summary) == [
            "env", "memory", "seed", "frames", "seconds", "eval_return", "eval_success",
        ]  # fmt: skip
        assert (summary["env"], summary["memory"], summary["seed"]) == ("wind", "shm", 0)
        assert summary["frames"] == FRAMES
        assert summary["seconds"] > 0
        assert 0 <= summary["eval_return"] <= 30
        assert 0 <= summary["eval_success"] <= 1
        check_metrics(folder)
        assert {"operator", "optimizer", "schedule", "collector"} < set(saved_state(folder))
        assert saved_state(folder)["updates"] == UPDATES

    @pytest.mark.parametrize(
        "in_a_process",
        [False, pytest.param(True, marks=pytest.mark.slow)],
        ids=["here", "in a process"],
    )
    def test_equal_seeds_give_equal_metrics(
        self, run: tuple[Path, Result], tmp_path: Path, in_a_process: bool
    ) -> None:
        here, result = run
        there, other = tmp_path / "there", tmp_path / "other"
        start = partial(process, cwd=Path.cwd()) if in_a_process else command
        found = start("ppo_shm.py", *TINY, f"hydra.run.dir={there}")
        assert (found.code, found.stderr) == (0, "")
        assert without_time(there) == without_time(here)
        assert found.summary["eval_return"] == result.summary["eval_return"]
        assert list(Path.cwd().iterdir()) == []
        command("ppo_shm.py", *TINY, "experiment.seed=1", f"hydra.run.dir={other}")
        assert without_time(other) != without_time(here)


@pytest.mark.parametrize(
    "memory", ["gru", *(pytest.param(x, marks=pytest.mark.slow) for x in ("lstm", "mlp"))]
)
def test_other_memories(tmp_path: Path, memory: str) -> None:
    train(tmp_path, memory=MEMORIES[memory])
    check_metrics(tmp_path)


def test_bar_and_default_folder() -> None:
    result = command("ppo_shm.py", *TINY, "experiment.total_frames=170", terminal=True)
    assert "320/320" in result.stderr
    assert "return=" in result.stderr
    assert "success=" in result.stderr
    (summary,) = Path("outputs").glob("ppo_shm/*/*_shm_seed0/summary.json")
    assert json.loads(summary.read_text())["frames"] == 320


def test_sweep_makes_a_folder_per_combination(tmp_path: Path) -> None:
    arguments = ("-m", "memory=shm,gru", "experiment.seed=0,1", *TINY, "experiment.total_frames=1")
    result = command("ppo_shm.py", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert result.code == 0, result.stderr
    folders = sorted(path.name for path in (tmp_path / "sweep").glob("*_seed?"))
    assert folders == ["0_shm_seed0", "1_shm_seed1", "2_gru_seed0", "3_gru_seed1"]
    summaries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(x["memory"], x["seed"]) for x in summaries] == [
        ("shm", 0), ("shm", 1), ("gru", 0), ("gru", 1),
    ]  # fmt: skip


def test_collecting_in_a_worker(tmp_path: Path) -> None:
    """In a process that starts as for a user; elsewhere workers are forks."""
    arguments = (*TINY, "collector=multi_sync", "collector.num_workers=1")
    result = command("ppo_shm.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    assert result.summary["frames"] == FRAMES
    check_metrics(tmp_path / "run")
    assert torch.get_num_threads() == 1
    assert multiprocessing.active_children() == []


class TestFromPython:
    def test_plain_objects(self, tmp_path: Path) -> None:
        """They name themselves."""
        folder = tmp_path / "run"
        summary = train(folder, total_frames=1, memory=partial(make_mlp, hidden_size=9), seed=3)
        assert summary == json.loads((folder / "summary.json").read_text())
        assert (summary["env"], summary["memory"], summary["seed"]) == ("WindEnv", "make_mlp", 3)
        assert not (folder / "config.yaml").exists()

    def test_launch(self, tmp_path: Path) -> None:
        config = make_config(
            env=builds(WindEnv, max_steps=30, zen_partial=True),
            memory=builds(SHMModule, memory_size=8, zen_partial=True),
            network=builds(make_actor_critic, zen_partial=True),
            experiment=builds(
                Experiment, num_envs=8, total_frames=1, populate_full_signature=True,
                run_dir="${hydra:runtime.output_dir}",
            ),
            algo=builds(PPO, rollout_length=20, sequences_per_minibatch=4),
            collector=builds(RolloutCollector, zen_partial=True),
        )  # fmt: skip
        (jobs,) = launch(
            config, zen(ppo_shm.main), multirun=True, version_base="1.3",
            overrides=[f"hydra.sweep.dir={tmp_path}", "hydra/job_logging=none"],
            **{"experiment.seed": "0,1"},
        )  # fmt: skip
        for seed, job in enumerate(jobs):
            summary, folder = job.return_value, Path(job.hydra_cfg.hydra.runtime.output_dir)
            assert summary == json.loads((folder / "summary.json").read_text())
            assert (summary["env"], summary["memory"]) == ("WindEnv", "SHMModule")
            assert summary["seed"] == seed
            assert "memory_size: 8" in (folder / "config.yaml").read_text()


def test_help_and_configuration() -> None:
    result = command("ppo_shm.py", "--help")
    assert result.code == 0
    for line in (
        "env: gym, key_to_door_{100,250,500,original}, memory_length, point_robot,",
        "popgym/Autoencode{Easy,Hard,Medium}",
        "memory: dnc, elman, fast_weights,",
        "    shm_{constant,fixed,neural,",
        "size: own, params, state",
        "collector: multi_sync, ray, single",
        "logger: csv, tensorboard, wandb",
        "experiment.num_envs: environments that step together",
        "  memory_size: 24",
    ):
        assert line in result.stdout
    # follow from other groups, so nobody chooses them
    assert "tuned" not in result.stdout
    assert "suited" not in result.stdout
    result = command("ppo_shm.py", "--cfg", "job", "memory=gru", "algo.epochs=7")
    assert result.code == 0
    assert "num_layers: 1" in result.stdout
    assert "epochs: 7" in result.stdout


class TestMistakes:
    """Each is answered before the first step, by name."""

    def test_old_names(self) -> None:
        result = command("ppo_shm.py", "seed=1", "algo.row_length=5", "memory=gru")
        assert (result.code, result.stdout) == (1, "")
        assert result.stderr == (
            "seed is now experiment.seed: write experiment.seed=1\n"
            "algo.row_length is now algo.rollout_length: write algo.rollout_length=5\n"
        )
        assert list(Path.cwd().iterdir()) == []

    def test_logger_that_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        result = command("ppo_shm.py", *TINY, "logger=wandb", f"hydra.run.dir={tmp_path}")
        assert result.code == 2
        assert 'pip install -e ".[wandb]"' in result.stderr


def test_extra_logger_gets_every_number(tmp_path: Path) -> None:
    class Recorder(list[tuple[str, str, str]]):
        def log_scalar(self, name: str, value: float, step: int) -> None:
            self.append((name, str(value), str(step)))

    recorder = Recorder()
    train(tmp_path / "run", logger=lambda run_dir: recorder)
    rows = read_metrics(tmp_path / "run")
    assert recorder == [(name, value, row["frames"]) for row in rows for name, value in row.items()]


class DropsGates(SHMModule):
    """Draws again in recurrent mode."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.recurrent_mode:
            tensordict.pop("theta_index", None)
        return super().forward(tensordict)


@pytest.mark.parametrize(
    "memory",
    # the second one starts every sequence with an empty memory
    [DropsGates, partial(SHMModule, state="zero")],
    ids=["gates", "zero"],
)
def test_memory_that_does_not_repeat_what_acted_stops_the_run(
    tmp_path: Path, memory: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"ratio .* is 1\.\d+ at most .* not 1: .*check_memory"):
        train(folder, memory=memory, learning_rate=1e-2, total_frames=3200)
    # right after the first updates, and with the numbers up to then on disk
    assert 1 <= len(read_metrics(folder)) <= 5
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("most", "mean"),
    [(1.02, 1.0), (0.98, 0.97), (1.0, 0.98), (float("nan"), 1.0)],
)
def test_ratio_may_only_round(most: float, mean: float) -> None:
    def term(most: float, mean: float) -> Any:
        return {"max_ratio": torch.tensor(most), "mean_ratio": torch.tensor(mean)}

    with pytest.raises(RuntimeError, match=f"is {most:.2g}.* at most and {mean:.2g}"):
        check_ratio(term(most, mean))
    assert check_ratio(term(1 + 1e-4, 1.0)) == pytest.approx(1.0001)


def test_what_is_learned_from_again(tmp_path: Path) -> None:
    """By the surprise of a return, or of a step."""
    found: list[Any] = []
    for priority in ("return", "step"):
        train(tmp_path / priority, imitation_coeff=0.1, imitation_priority=priority)
        saved: Any = RunFolder(tmp_path / priority).checkpoints.load()["imitation"]
        assert saved["priority"].any()
        found.append(saved)
    assert not torch.equal(found[0]["priority"], found[1]["priority"])


def test_the_critic_looks_further_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are of `critic_lmbda`, here whole returns; the policy has its own."""
    seen: list[tuple[float, Any]] = []

    def keep(self: SelfImitation, batch: Any, scale: float) -> None:
        seen.append((self.trace_decay, batch.clone()))

    monkeypatch.setattr(SelfImitation, "add", keep)
    env = partial(KeyToDoorEnv, frames=(3, 14, 3))
    options: Any = {"gamma": 0.9, "rollout_length": 20, "imitation_priority": "step"}
    train(tmp_path, env=env, lmbda=0.5, critic_lmbda=1.0, **options)
    for trace_decay, batch in seen:
        assert trace_decay == 0.9
        reward, value = batch["next", "reward"], batch["state_value"]
        assert batch["next", "terminated"][:, -1].all()
        left = torch.zeros_like(reward[:, 0])
        near = torch.zeros_like(left)
        after, returns, advantages = torch.zeros_like(left), [], []
        for t in reversed(range(20)):
            left = reward[:, t] + 0.9 * left
            near = reward[:, t] + 0.9 * after - value[:, t] + 0.9 * 0.5 * near
            after = value[:, t]
            returns.append(left)
            advantages.append(near)
        returns, advantages = torch.stack(returns[::-1], 1), torch.stack(advantages[::-1], 1)
        torch.testing.assert_close(batch["value_target"], returns, rtol=1e-5, atol=1e-5)
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
        torch.testing.assert_close(batch["advantage"], advantages, rtol=1e-4, atol=1e-4)
    assert len(seen) > 1


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

    def _observe(self, *args: Any) -> dict[str, Any]:
        seen = super()._observe(*args)
        return {key: x for key, x in seen.items() if key not in ("success", "shaping")}


@pytest.mark.usefixtures("curves")
def test_task_without_success_and_shaping(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = train(folder, env=partial(Calm, max_steps=30), total_frames=480)
    assert summary["eval_success"] is None
    assert "success" not in read_metrics(folder)[0]
    assert json.loads((folder / "summary.json").read_text())["eval_success"] is None


def test_logs_have_the_reward_of_the_task_alone(tmp_path: Path) -> None:
    """Shaping changes what is learned, not what is reported."""
    env = partial(WindEnv, max_steps=20, goal_radius=1e-9, shaping_radii=(0.001, 10.0))
    train(tmp_path / "shaped", env=env, total_frames=480)
    train(tmp_path / "plain", env=env, total_frames=480, shaping=0.0)
    shaped, plain = read_metrics(tmp_path / "shaped"), read_metrics(tmp_path / "plain")
    assert {float(row["return"]) for row in shaped + plain} == {0.0}
    assert shaped[0]["loss_critic"] != plain[0]["loss_critic"]
