"""SAC as a user runs it: continuous and discrete, stopped and resumed, evaluated and exported."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import sac_shm
from tests._disks import small_disk
from tests.recipes._helpers import (
    Result,
    check_same_runs,
    command,
    read_metrics,
    saved_state,
    without_time,
)
from tests.recipes.test_resume import kill
from tests.tools._helpers import tool
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import SAC, instantiate_saved
from torchrl_shm.modules import make_mlp
from torchrl_shm.networks import make_soft_actor_critic
from torchrl_shm.sharing import load_policy
from torchrl_shm.training import Experiment, RolloutCollector, RunFolder, evaluate, make_test_env

pytestmark = pytest.mark.usefixtures("elsewhere")

# six batches, of which the first two are random; rollouts end in mid-episode, checkpoints in
# mid-run, and the buffer holds less than all
TINY = (
    "experiment.total_frames=720", "experiment.num_envs=6", "algo.rollout_length=20",
    "algo.batch_size=4", "algo.updates_per_step=0.02", "algo.random_frames=240",
    "algo.buffer_size=400", "experiment.checkpoint_interval=2", "experiment.num_test_episodes=6",
)  # fmt: skip
UPDATES, FRAMES_PER_UPDATE, FRAMES = 6, 120, 720
WIND = ("env=wind", "env.max_steps=30", "env.goal_radius=0.9", "env.num_tasks=20",
        "env.num_train_tasks=8", "env.num_test_tasks=12")  # fmt: skip
CASES = {
    "continuous": WIND,
    "discrete": ("env=t_maze_passive", "env.length=8", "memory=gru", "algo.storage=disk"),
    "actor": (*WIND, "network/actor_memory=gru", "algo.burn_in=5", "algo.storage=disk"),
}
COLUMNS = (
    "update", "frames", "return", "success", "loss_actor", "loss_qvalue", "entropy", "alpha",
    "grad_norm_actor", "grad_norm_critic", "learning_rate", "seconds", "frames_per_second",
)  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing stopped."""

    @cache
    def make(*arguments: str) -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        result = start(folder, *arguments)
        assert (result.code, result.stderr) == (0, "")
        return folder

    return make


def start(folder: Path, *arguments: str) -> Result:
    return command("sac_shm.py", *TINY, *arguments, f"hydra.run.dir={folder}")


def resume(folder: Path) -> Result:
    return command("sac_shm.py", f"experiment.resume={folder}")


def train(folder: Path, **replace: Any) -> dict[str, Any]:
    """Call the recipe with plain objects."""
    algo: dict[str, Any] = {"rollout_length": 20, "batch_size": 4, "random_frames": 120}
    experiment: dict[str, Any] = {"total_frames": FRAMES, "num_envs": 6, "checkpoint_interval": 1}
    experiment |= {name: replace.pop(name) for name in {*vars(Experiment())} & {*replace}}
    algo |= {name: replace.pop(name) for name in {*vars(SAC())} & {*replace}}
    parts: dict[str, Any] = {
        "env": partial(WindEnv, max_steps=30, shaping_radii=(0.001, 10.0)),
        "memory": SHMModule,
        "network": make_soft_actor_critic,
        "collector": RolloutCollector,
    }
    return sac_shm.main(
        **parts | replace, experiment=Experiment(**experiment, run_dir=str(folder)),
        algo=SAC(**algo),
    )  # fmt: skip


# its memory is checkpointed, exported and read back as the others are
ACTOR = pytest.param("actor", marks=pytest.mark.slow)


class TestRun:
    @pytest.mark.parametrize("case", CASES)
    def test_what_is_left(self, straight: Any, case: str) -> None:
        folder = straight(*CASES[case])
        summary = json.loads((folder / "summary.json").read_text())
        expected = {"actor": "shm_actor_gru", "discrete": "gru"}.get(case, "shm")
        assert (summary["memory"], summary["frames"]) == (expected, FRAMES)
        rows = read_metrics(folder)
        assert tuple(rows[0]) == COLUMNS
        assert [int(row["frames"]) for row in rows] == [120 * (i + 1) for i in range(UPDATES)]
        numbers = [[float(row[name]) for name in COLUMNS[4:10]] for row in rows]
        learned = [all(map(math.isfinite, row)) for row in numbers]
        assert learned == [False, False, True, True, True, True]
        # the presets of Wind let it fall, over the batches that are learned from
        falls = [1.0] * 6 if case == "discrete" else [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
        assert [float(row["learning_rate"]) for row in rows] == pytest.approx(
            [SAC().learning_rate * share for share in falls]
        )
        assert {"operator", "loss", "slow", "optimizer", "replay"} < set(saved_state(folder))

    @pytest.mark.parametrize("case", ["continuous", "discrete", ACTOR])
    def test_killed_and_resumed(self, straight: Any, tmp_path: Path, case: str) -> None:
        """With the replay buffer, in which old sequences were replaced."""
        folder = tmp_path / "run"
        kill(partial(start, folder, *CASES[case]), folder, after=5)
        result = resume(folder)
        assert result.code == 0, result.stderr
        assert "resumed at frame 480\n" in result.stderr
        check_same_runs(folder, straight(*CASES[case]))
        # but for their hashes: the steps of lean rollouts are numbered from another start
        one, other = (
            sorted(path.name[:30] for path in x.glob("replay/*"))
            for x in (folder, straight(*CASES[case]))
        )
        assert one == other

    @pytest.mark.parametrize("case", ["continuous", "discrete", ACTOR])
    def test_evaluated_and_exported(self, straight: Any, tmp_path: Path, case: str) -> None:
        run = Path(shutil.copytree(straight(*CASES[case]), tmp_path / "run"))
        expected = json.loads((run / "summary.json").read_text())
        result = tool("evaluate", run, "--num-paths", 1)
        assert (result.code, result.stderr) == (0, "")
        assert result.summary["eval_return"] == expected["eval_return"]
        result = tool("export", run, "--to", tmp_path / "shared")
        assert (result.code, result.stderr) == (0, "")
        parts = instantiate_saved(run)
        env = make_test_env(parts["env"], num_episodes=parts["experiment"].num_test_episodes)
        found = evaluate(load_policy(tmp_path / "shared").module, env)
        assert round(found.mean_return, 4) == expected["eval_return"]
        config = json.loads((tmp_path / "shared" / "config.json").read_text())
        assert config["operator"] == "make_soft_actor_critic"
        assert ("GRU" in json.dumps(config["memory"])) == (case != "continuous")


@pytest.mark.slow
def test_compared_with_another_algorithm(straight: Any, tmp_path: Path) -> None:
    other = tmp_path / "ppo"
    tiny = [x for x in TINY if x.startswith("experiment.") or "rollout" in x]
    options = (*WIND, *tiny, "algo.sequences_per_minibatch=3", f"hydra.run.dir={other}")
    assert command("ppo_shm.py", *options).code == 0
    result = tool("compare", straight(*WIND), other, "--output", tmp_path / "both")
    assert (result.code, result.stderr) == (0, "")
    assert (tmp_path / "both.png").exists()


@pytest.mark.parametrize("time_size", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_without_a_memory(tmp_path: Path, time_size: int) -> None:
    """For comparisons; what came next is then a matter of one observation."""
    network = partial(make_soft_actor_critic, time_size=time_size)
    summary = train(tmp_path, memory=make_mlp, network=network, total_frames=240)
    assert summary["memory"] == "make_mlp"


class TestMistakes:
    @pytest.mark.parametrize(
        ("override", "answer"),
        [
            ("algo.buffer_size=60", "algo.buffer_size=60 steps hold 3 sequences of "
             "algo.rollout_length=20, less than algo.batch_size=4"),
            ("algo.burn_in=20", "algo.burn_in=20 leaves nothing of sequences of"),
            *(
                pytest.param(*x, marks=pytest.mark.slow)
                for x in (
                    ("algo.batch_size=21", "less than algo.batch_size=21"),
                    ("algo.storage=tape", "'memory' or 'disk'"),
                    ("algo.temperature=0", "algo.temperature=0.0 must be positive"),
                )
            ),
            ("experiment.compile=all", "experiment.compile='all' is not offered by this recipe"),
            ("network.actor_memory=gru", "write network/actor_memory=gru, with a slash"),
        ],
    )  # fmt: skip
    def test_message(self, tmp_path: Path, override: str, answer: str) -> None:
        result = start(tmp_path, override)
        assert (result.code, result.stdout) == (2, "")
        assert answer in result.stderr
        assert result.stderr.count("\n") <= 3
        assert not (tmp_path / "metrics.csv").exists()

    def test_target_of_a_fixed_temperature(self) -> None:
        with pytest.raises(ValueError, match=r"target_entropy=1\.0 .*temperature=0\.1 is fixed"):
            SAC(temperature=0.1, target_entropy=1.0)

    def test_actions_that_it_does_not_take(self, tmp_path: Path) -> None:
        result = start(tmp_path, "env=popgym_mine_sweeper_easy", "env.joint_action=false")
        assert result.code == 2
        assert "it takes a continuous action with bounds, or an index" in result.stderr


def test_full_disk(tmp_path: Path, capsys: Any) -> None:
    """Checkpoints and what they need stay; with room again the run is what it would have been."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        with pytest.raises(OSError, match="cannot write") as caught:
            train(disk / "run", keep_checkpoints=9)
        assert caught.value.errno == errno.ENOSPC
        folder = Path(shutil.copytree(disk / "run", tmp_path / "run"))
    assert not list(folder.rglob("*.part"))
    assert f"all up to frame {saved_state(folder)['frames']} is" in capsys.readouterr().err
    train(folder, resume=str(folder), keep_checkpoints=9)
    train(tmp_path / "straight", keep_checkpoints=9)
    check_same_runs(folder, tmp_path / "straight")


def test_gradient_that_is_not_finite(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    clip, calls = sac_shm.clip_grad_norm_, iter(range(100))

    def spoil(parameters: Any, limit: float) -> torch.Tensor:
        return clip(parameters, limit) * (math.nan if next(calls) == 7 else 1)

    monkeypatch.setattr(sac_shm, "clip_grad_norm_", spoil)
    with pytest.raises(FloatingPointError, match="non-finite gradient"):
        train(tmp_path / "stop")
    calls = iter(range(100))
    train(tmp_path / "skip", on_nonfinite="skip")
    assert capsys.readouterr().err.count("skipped") == 1
    assert RunFolder(tmp_path / "skip").summary is not None


def test_parts_of_episodes_and_burn_in_change_what_is_learned(tmp_path: Path) -> None:
    train(tmp_path / "whole", total_frames=360)
    train(tmp_path / "burn", total_frames=360, burn_in=10)
    assert without_time(tmp_path / "whole") != without_time(tmp_path / "burn")
