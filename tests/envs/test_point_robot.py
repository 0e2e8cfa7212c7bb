"""Point Robot: the original's numbers to the last bit, and a task that spans two episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests._night import at_night
from tests.envs._helpers import inject, step
from torchrl_shm.envs import PointRobotEnv

# six tasks of the original, actions before clipping
RECORDED = Path(__file__).parents[1] / "fixtures" / "point_robot_shm.npz"
HARD: dict[str, Any] = {"num_train_tasks": 10, "num_test_tasks": 190}
ORIGINAL: dict[str, Any] = {
    "num_tasks": 100,
    "num_train_tasks": 80,
    "num_test_tasks": 20,
    "goal_radius": 0.2,
    "max_steps": 60,
}
PRESETS = {"point_robot": {}, "point_robot_hard": HARD, "point_robot_original": ORIGINAL}


class TestOriginal:
    @pytest.fixture
    def recorded(self) -> dict[str, Tensor]:
        with np.load(RECORDED) as data:
            return {name: torch.from_numpy(data[name]) for name in data}

    def test_steps_are_exact(self, recorded: dict[str, Tensor]) -> None:
        # the recording covers both rewards, clipping and restarts
        assert 0 < recorded["reward"].sum() < recorded["reward"].numel()
        assert recorded["action"].abs().max() > 1
        jumps = recorded["observation"][:, 101, :2] - recorded["observation"][:, 100, :2]
        assert (jumps.abs().amax(-1) > 0.1).any()
        env = PointRobotEnv(len(recorded["goal"]))
        data = inject(env, goal=recorded["goal"], start=recorded["start"])
        seen = recorded["observation"]
        assert torch.equal(data["observation"], seen[:, 0, :2].float())
        for name in ("inner_done", "previous_action", "previous_reward", "success", "done"):
            assert not data[name].any()
        for t in range(200):
            action = recorded["action"][:, t]
            data = step(env, action)
            assert torch.equal(env._running()["position"], seen[:, t + 1, :2])
            assert torch.equal(data["observation"], seen[:, t + 1, :2].float())
            assert torch.equal(data["inner_done"][:, 0], seen[:, t + 1, 2].float())
            assert torch.equal(data["previous_action"], action.clamp(-1, 1).float())
            assert torch.equal(data["reward"][:, 0], recorded["reward"][:, t].float())
            assert torch.equal(data["previous_reward"], data["reward"])
            assert torch.equal(data["truncated"][:, 0], recorded["done"][:, t])
            ever = recorded["reward"][:, : t + 1].any(-1)
            assert torch.equal(data["success"][:, 0], ever)
        assert data["done"].all()
        assert not data["terminated"].any()


class TestTasks:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_goals_are_on_the_upper_half_circle(self, preset: str) -> None:
        env = PointRobotEnv(**PRESETS[preset])
        goals = torch.cat([env.train_tasks, env.test_tasks])
        assert len(goals.unique(dim=0)) == env.num_tasks
        torch.testing.assert_close(goals.norm(dim=-1), torch.ones(len(goals)).double())
        assert (goals[:, 1] >= 0).all()

    def test_starts_are_uniform_in_the_rectangle(self) -> None:
        env = PointRobotEnv(10_000, num_episodes=3, seed=0)
        env.reset()
        assert env.start.shape == (10_000, 3, 2)
        low, high = torch.tensor([-1.5, -0.5]), torch.tensor([1.5, 1.5])
        share = (env.start - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        # six standard deviations of the share below every tenth
        for tenth in range(1, 10):
            found = (share < tenth / 10).double().mean(0)
            assert (found - tenth / 10).abs().max() < 6 * 0.5 / 10_000**0.5
        # episodes and axes do not depend on each other
        correlation = torch.corrcoef(share.flatten(1).T) - torch.eye(6)
        assert correlation.abs().max() < 0.06


class TestEpisodes:
    GOAL = torch.tensor([[0.0, 1.0]])

    def test_restart_is_seen_one_step_late(self) -> None:
        env = PointRobotEnv(1, max_steps=2, num_episodes=3)
        start = torch.tensor([[[0.0, 0.0], [0.5, 0.5], [-1.0, 0.25]]])
        inject(env, goal=self.GOAL, start=start)
        data = [step(env, torch.tensor([[1.0, 0.0]])) for _ in range(6)]
        seen = torch.stack([x["observation"][0] for x in data])
        # ends where the episode ends; the new start only shows in what follows from it
        torch.testing.assert_close(seen[:, 0], torch.tensor([0.1, 0.2, 0.6, 0.7, -0.9, -0.8]))
        torch.testing.assert_close(seen[:, 1], torch.tensor([0, 0, 0.5, 0.5, 0.25, 0.25]))
        assert [x["inner_done"].item() for x in data] == [0, 1, 0, 1, 0, 1]
        assert [x["done"].item() for x in data] == [False] * 5 + [True]

    def test_rows_restart_on_their_own(self) -> None:
        env = PointRobotEnv(2, max_steps=4, seed=0)
        data = env.reset()
        for _ in range(3):
            data = step(env, torch.zeros(2, 2))
        mask = torch.tensor([[True], [False]])
        env.reset(data.exclude("reward").set("_reset", mask))
        ends = [step(env, torch.zeros(2, 2)) for _ in range(8)]
        assert [x["inner_done"][:, 0].tolist() for x in ends][:5] == [
            [0, 1], [0, 0], [0, 0], [1, 0], [0, 1],
        ]  # fmt: skip
        done = torch.stack([x["done"][:, 0] for x in ends])
        assert done.int().argmax(0).tolist() == [7, 4]

    def test_goal_at_the_end_of_an_episode_counts(self) -> None:
        env = PointRobotEnv(1, max_steps=1)
        start = torch.tensor([[[0.0, 0.9], [1.0, -0.5]]])
        inject(env, goal=self.GOAL, start=start)
        data = step(env, self.GOAL)
        assert [data[name].item() for name in ("reward", "success", "inner_done")] == [1, True, 1]
        data = step(env, self.GOAL)
        assert [data[name].item() for name in ("reward", "success", "done")] == [0, True, True]

    def test_an_episode_in_the_mirror_is_the_mirror_image(self) -> None:
        env = PointRobotEnv(2, goal_radius=0.5)
        rewards = 0.0
        sides = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
        # near the goal first, and then away from it
        goal = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        start = torch.tensor([[0.6, 0.6], [-1.4, 0.1]], dtype=torch.float64)
        inject(env, goal=goal * sides, start=start * sides[:, None])
        for _ in range(110):
            action = torch.rand(2) * 2 - 1
            data = step(env, torch.stack([action, action * torch.tensor([-1.0, 1.0])]))
            left, right = data["observation"] * sides.float()
            # the original rounds actions in float32, and that differs between the two sides
            torch.testing.assert_close(left, right)
            for name in ("reward", "success", "inner_done"):
                assert data[name][0] == data[name][1]
            rewards += float(data["reward"][0])
        assert 0 < rewards < 110

    def test_start_in_the_goal_is_not_paid(self) -> None:
        env = PointRobotEnv(1)
        data = inject(env, goal=self.GOAL, start=self.GOAL.expand(1, 2, 2))
        assert not data["success"].any()
        assert step(env, torch.zeros(1, 2))["reward"].item() == 1


Policy = Callable[[Tensor, Tensor], Tensor]


def play(env: PointRobotEnv, policy: Callable[[PointRobotEnv], Policy]) -> Tensor:
    """Returns of the episodes of every task, `[num_episodes, B]`."""
    data, act = env.reset(), policy(env)
    found = torch.zeros(env.num_episodes, *env.batch_size)
    for t in range(env.num_episodes * env.max_steps):
        data = step(env, act(data["observation"], data["inner_done"] > 0))
        found[t // env.max_steps] += data["reward"][:, 0]
    return found


def oracle(env: PointRobotEnv) -> Policy:
    """Knows the goal and, after a restart, where it is."""
    return lambda seen, ended: ((env.goal - env._running()["origin"]) / 0.1).float()


class Searcher:
    """Sweeps the half circle from its nearer end; remembers where it was paid.

    It only uses what it sees: it plays nothing after a restart, to see the start first.
    """

    def __init__(self, env: PointRobotEnv) -> None:
        self.env = env
        number = math.ceil(math.pi / (2 * env.goal_radius)) + 1
        angle = torch.linspace(0, math.pi, number)
        self.stops = torch.stack([angle.cos(), angle.sin()], -1)
        self.at = torch.zeros(env.batch_size, dtype=torch.int64)
        self.from_right: Tensor | None = None
        self.found = torch.full((*env.batch_size, 2), math.nan)

    def __call__(self, seen: Tensor, ended: Tensor) -> Tensor:
        if self.from_right is None:
            self.from_right = seen[:, 0] > 0
        paid = self.env._running()["previous_reward"] > 0
        self.found = torch.where(paid & self.found.isnan(), seen, self.found)
        index = torch.where(self.from_right, self.at, len(self.stops) - 1 - self.at)
        arrived = (self.stops[index] - seen).norm(dim=-1) < 1e-5
        self.at = (self.at + arrived).clamp(max=len(self.stops) - 1)
        index = torch.where(self.from_right, self.at, len(self.stops) - 1 - self.at)
        target = torch.where(self.found.isnan(), self.stops[index], self.found)
        return torch.where(ended, 0.0, (target - seen) / 0.1)


@pytest.mark.parametrize(
    "preset",
    # its episodes are the longest
    at_night(PRESETS, unless=lambda preset: preset != "point_robot_original"),
)
def test_bounds(preset: str) -> None:
    """What docs/tasks/point_robot.md says."""
    best, first, second = {
        "point_robot": (90.4, 77.3, 89.3),
        "point_robot_hard": (90.4, 77.3, 89.2),
        "point_robot_original": (52.1, 40.0, 50.8),
    }[preset]
    env = PointRobotEnv(split="test", seed=0, **PRESETS[preset])
    repeats = 600 // env.num_envs
    known = torch.cat([play(env, oracle) for _ in range(repeats)], 1)
    searched = torch.cat([play(env, Searcher) for _ in range(repeats)], 1)
    # both go to the goal in every task
    assert known.min() > 0
    assert searched.sum(0).min() > 0
    assert known.mean(1).tolist() == pytest.approx([best, best], abs=0.5)
    assert searched.mean(1).tolist() == pytest.approx([first, second], abs=1.0)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        PointRobotEnv(num_episodes=0)
    with pytest.raises(ValueError, match=r'"start" of shape \(3, 2, 2\), got \(3, 2\)'):
        inject(PointRobotEnv(3), goal=torch.zeros(3, 2), start=torch.zeros(3, 2))
