"""Tasks of gymnasium from the command line to a policy that is loaded again."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import Binary
from torchrl.envs import TransformedEnv

from tests.recipes._helpers import command
from torchrl_shm import SHMModule
from torchrl_shm.envs import State, make_gym_env, popgym
from torchrl_shm.networks import (
    get_behavior,
    make_actor_critic,
    make_soft_actor_critic,
)
from torchrl_shm.sharing import export_policy, load_policy
from torchrl_shm.tools.evaluate import main as evaluate_tool
from torchrl_shm.training import (
    RolloutCollector,
    SlowCritic,
    evaluate,
    make_sac_loss,
    make_test_env,
    unroll_features,
)

SMALL = (
    "env=gym", "experiment.total_frames=80", "experiment.num_envs=2",
    "experiment.num_test_episodes=2", "experiment.max_test_steps=30",
)  # fmt: skip
PPO = ("algo.rollout_length=20", "algo.sequences_per_minibatch=2", "algo.epochs=1")
slow = pytest.mark.slow


def train(folder: Path, *options: str, recipe: str = "ppo_shm") -> Path:
    run = folder / "run"
    result = command(f"{recipe}.py", *SMALL, *options, f"hydra.run.dir={run}")
    assert result.code == 0, result.stderr
    return run


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "id",
    [
        # with the module that registers it
        "gymnasium:Pendulum-v1",
        pytest.param("Blackjack-v1", marks=slow),
        pytest.param("MountainCarContinuous-v0", marks=slow),
        pytest.param("Acrobot-v1", marks=slow),
        pytest.param("FrozenLake-v1", marks=slow),
        # has an action mask
        pytest.param("Taxi-v4", marks=slow),
        pytest.param("CliffWalking-v1", marks=slow),
    ],
)
def test_from_the_command_line_to_a_loaded_policy(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path, f"env.id={id}", *PPO)
    found = evaluate_tool([str(run), "--pictures", str(tmp_path)])
    assert (found["env"], found["frames"]) == (id.removeprefix("gymnasium:"), 80)
    policy = load_policy(export_policy(run))
    # what was exported does what the policy of the run does in the task
    env = make_test_env(partial(make_gym_env, id), num_episodes=2, max_steps=5)
    data: Any = evaluate(policy.module, env, seed=3, keep_rollout=True).rollout
    memory = policy.initial_memory(2)
    torch.manual_seed(3)
    for step in data.unbind(-1):
        # a row that has ended waits
        action, memory = policy(step.to_dict(), memory, step["is_init"][:, 0])
        running = ~step["done"][:, 0]
        torch.testing.assert_close(action[running], step["action"][running])


@slow
def test_sac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "env.id=MountainCarContinuous-v0", recipe="sac_shm")


def test_arguments_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("env.kwargs={is_slippery:false,desc:[SFF,FFG]}", "env.max_episode_steps=4")
    run = train(tmp_path, "env.id=FrozenLake-v1", *options, *PPO)
    assert "desc:\n    - SFF" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("env.id=CartPol-v1",), "did you mean CartPole-v"),
        (("env.id=FrozenLake-v1", "env.kwargs={slip:1}"), "raised TypeError"),
        (("env.id=tests.envs._gym_mistakes:Tuple-v0",), "which no policy makes: wrap it"),
        (
            ("env.id=tests.envs._gym_mistakes:NaN-v0",),
            "'observation' is nan in row 0 after a reset",
        ),
    ],
)
def test_a_mistake_is_a_line(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", *SMALL, *PPO, *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_task_that_breaks_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words, and where the run is saved; the traceback where it is asked for."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    options = ("env.id=tests.envs._gym_mistakes:Breaks-v0", "algo.rollout_length=10", *PPO[1:],
               "experiment.checkpoint_interval=1", f"hydra.run.dir={run}")  # fmt: skip
    result = command("ppo_shm.py", *SMALL, *options)
    assert result.code == 1
    assert result.stderr.splitlines() == [
        f"stopped; all up to frame 20 is saved, go on with experiment.resume={run}",
        "environment 0 of tests.envs._gym_mistakes:Breaks-v0: a step raised OSError: "
        "the robot is off",
        f"The error is of the training, update 1 of {run}.",
        "(HYDRA_FULL_ERROR=1 shows where)",
    ]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    result = command("ppo_shm.py", *SMALL, *options, f"hydra.run.dir={run}2")
    assert result.code == 1
    assert "\nOSError: the robot\nis off\n" in result.stderr


def test_a_reward_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", *SMALL, *PPO, "env.id=tests.envs._gym_mistakes:NaNReward-v0")
    assert result.code == 1
    assert result.stderr.splitlines() == [
        "update 0: non-finite data: ('next', 'reward') is nan in sequence 0, step 0. It did not "
        "reach the parameters; fix the environment, or leave such data out with "
        "experiment.on_nonfinite=skip",
        "The error is of the training, update 0; nothing was saved.",
        "(HYDRA_FULL_ERROR=1 shows where)",
    ]
    assert not list(tmp_path.iterdir())


class TestEndless:
    def test_the_bound_is_said_and_kept(self, capsys: pytest.CaptureFixture[str]) -> None:
        make = partial(make_gym_env, "CliffWalking-v1")
        env: Any = make_test_env(make, num_episodes=2, max_steps=5)
        assert capsys.readouterr().err == ""
        policy: Any = make_actor_critic(env, SHMModule).get_policy_operator()
        result: Any = evaluate(policy, env, keep_rollout=True)
        assert result.rollout.shape == (2, 5)
        make_test_env(make, num_episodes=2)
        said = capsys.readouterr().err
        assert said.startswith("gymnasium knows of no time limit for this task: episodes of the ")
        assert "are cut after 1,000 steps (experiment.max_test_steps), those of training" in said
        assert "memory.clamp=100" in said

    def test_tasks_that_end_are_not_cut(self, capsys: pytest.CaptureFixture[str]) -> None:
        env = make_test_env(partial(make_gym_env, "CartPole-v1"), num_episodes=2)
        assert not isinstance(env, TransformedEnv)
        assert capsys.readouterr().err == ""

    @slow
    def test_memory_of_the_process_is_flat(self) -> None:
        """Episodes of 100,000 steps."""
        memory = partial(SHMModule, clamp=100.0)
        collector = RolloutCollector(
            partial(make_gym_env, "CliffWalking-v1"),
            # without a bound, the memory of an untrained agent grows by itself
            get_behavior(make_actor_critic(make_gym_env("CliffWalking-v1"), memory)),
            num_envs=1, rollout_length=1000, total_frames=100_000,
        )  # fmt: skip
        sizes: list[int] = []
        for batch in collector:
            assert not batch["next", "truncated"].any()
            sizes.append(resident())
        collector.close()
        # after a tenth, all that is kept has been made
        assert max(sizes[10:]) - sizes[10] < 20e6


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class MaskedBattleship(popgym.BattleshipEnv):
    """Nobody may shoot at a cell twice."""

    policy_keys = ("observation", "action_mask")

    def _set_up(self, observation: Any, *arguments: Any) -> None:
        shape = (self.num_envs, self.board_size**2)
        mask = Binary(shape=torch.Size(shape), dtype=torch.bool, device=self.device)
        super()._set_up({**observation, "action_mask": mask}, *arguments)

    def _observe(self, state: State) -> State:
        return {**super()._observe(state), "action_mask": ~state["guessed"]}


def test_a_task_of_ours_with_an_action_mask() -> None:
    make = partial(MaskedBattleship, level="easy")
    operator = make_actor_critic(make(4), SHMModule)
    rows = RolloutCollector(
        make, get_behavior(operator), num_envs=4, rollout_length=40, total_frames=160
    )
    (batch,) = rows
    rows.close()
    # in their first 40 steps, all cells differ
    assert all(len(row.unique()) == 40 for row in batch["action"])
    free = batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1))
    assert free.all()


def test_sac_with_an_action_mask() -> None:
    make = partial(MaskedBattleship, level="easy")
    operator = make_soft_actor_critic(make(2), SHMModule)
    rows = RolloutCollector(
        make, get_behavior(operator), num_envs=2, rollout_length=20, total_frames=40
    )
    (batch,) = rows
    rows.close()
    loss = make_sac_loss(operator, gamma=0.9)
    SlowCritic(operator, loss, tau=0.01)
    terms = loss(unroll_features(operator.critic, unroll_features(operator.actor, batch)))
    total = terms["loss_actor"] + terms["loss_qvalue"] + terms["loss_alpha"]
    total.backward()
    assert bool(total.isfinite())
    gradients = [p.grad for p in operator.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(grad.isfinite().all()) for grad in gradients)
