"""T-Maze: the rules of Memory-RL, played by a scalar program of their own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._helpers import inject, step
from torchrl_shm.envs import TMazeEnv

VARIANTS = [(1, True), (2, True), (10, True), (1, False), (7, False), (10, False)]


class Original:
    """One episode by the rules as they are told: a walker, a map, a clock."""

    def __init__(self, length: int, passive: bool, goal: int) -> None:
        self.offset = 0 if passive else 1
        self.end = length + self.offset
        self.duration = length + 1 + 2 * self.offset
        self.penalty = -1.0 / length
        self.goal, self.visited, self.time = goal, False, 0
        self.x, self.y = self.offset, 0

    def observe(self) -> list[float]:
        if self.x == 0:
            shown = 0 if self.visited else self.goal
            self.visited = True
            return [0, shown]
        return [1, self.y] if self.x == self.end else [0, 0]

    def step(self, action: int) -> tuple[list[float], float, bool]:
        self.time += 1
        dx, dy = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}[action]
        x, y = self.x + dx, self.y + dy
        corridor = y == 0 and 0 <= x <= self.end
        if corridor or (x == self.end and y in (-1, 1)):
            self.x, self.y = x, y
        done = self.time >= self.duration
        if done:
            reward = 1.0 if self.y == self.goal else 0.0
        else:
            reward = self.penalty if self.x < self.time - self.offset else 0.0
        return self.observe(), reward, done


def expert(t: int, length: int, passive: bool, goal: int) -> int:
    """To the oracle and back, down the corridor, and into the arm of the goal."""
    offset = 0 if passive else 1
    if t < offset:
        return 2
    return 0 if t < length + 2 * offset else (1 if goal == 1 else 3)


@pytest.mark.parametrize(("length", "passive"), VARIANTS)
def test_steps_are_those_of_the_original(length: int, passive: bool) -> None:
    rows = 60
    generator = random.Random(0)
    goals = [generator.choice((-1, 1)) for _ in range(rows)]
    originals = [Original(length, passive, goal) for goal in goals]
    env = TMazeEnv(rows, length=length, passive=passive)
    data = inject(env, goal=torch.tensor(goals))
    assert torch.equal(env.goal, torch.tensor(goals))
    assert data["observation"].tolist() == [original.observe() for original in originals]
    for name in ("previous_action", "previous_reward", "success", "done"):
        assert not data[name].any()
    total = torch.zeros(rows)
    for t in range(env.max_steps):
        # from experts, over experts who err, to those who walk at random
        actions = [
            expert(t, length, passive, goal)
            if generator.random() >= row / (rows - 1)
            else generator.randrange(4)
            for row, goal in enumerate(goals)
        ]
        data = step(env, torch.tensor(actions))
        expected = [o.step(a) for o, a in zip(originals, actions, strict=True)]
        assert data["observation"].tolist() == [seen for seen, _, _ in expected]
        assert torch.equal(
            data["reward"][:, 0], torch.tensor([reward for _, reward, _ in expected])
        )
        assert data["terminated"][:, 0].tolist() == [done for _, _, done in expected]
        assert torch.equal(data["previous_action"].argmax(-1), torch.tensor(actions))
        assert (data["previous_action"].sum(-1) == 1).all()
        assert torch.equal(data["previous_reward"], data["reward"])
        total += data["reward"][:, 0]
    assert data["done"].all()
    assert not data["truncated"].any()
    assert torch.equal(data["success"][:, 0], data["reward"][:, 0] == 1)
    # both outcomes are among them, and the first row is the expert
    assert 0 < data["success"].sum() < rows
    assert total[0] == 1


class TestRules:
    def test_cue_is_shown_once(self) -> None:
        env = TMazeEnv(1, length=3, passive=False)
        data = inject(env, goal=torch.tensor([-1]))
        seen = [data["observation"][0].tolist()]
        for action in (2, 2, 0, 2):
            seen.append(step(env, torch.tensor([action]))["observation"][0].tolist())
        assert seen == [[0, 0], [0, -1], [0, 0], [0, 0], [0, 0]]

    def test_arms_lead_back_to_the_junction_only(self) -> None:
        env = TMazeEnv(1, length=1)
        inject(env, goal=torch.tensor([1]))
        # the clock stops nobody who goes on after the end
        seen = [step(env, torch.tensor([a]))["observation"][0].tolist() for a in (0, 1, 0, 2, 1, 3)]
        assert seen == [[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 0]]

    @pytest.mark.parametrize(("passive", "worst"), [(True, -1.0), (False, -1.1)])
    def test_whoever_runs_into_the_wall_is_paid_the_worst(
        self, passive: bool, worst: float
    ) -> None:
        env = TMazeEnv(2, length=10, passive=passive)
        returns, _ = play(env, lambda env, t: torch.full((2,), 2))
        assert returns == pytest.approx(worst)

    @pytest.mark.parametrize(("passive", "steps"), [(True, 51), (False, 53)])
    def test_length_of_episodes(self, passive: bool, steps: int) -> None:
        assert TMazeEnv(2, length=50, passive=passive).rollout(1_000).shape == (2, steps)

    def test_penalty_is_an_option(self) -> None:
        env = TMazeEnv(1, length=5, penalty=0.0)
        env.reset()
        assert [step(env, torch.tensor([1]))["reward"].item() for _ in range(5)] == [0] * 5


def test_picture_shows_agent_cue_and_goal() -> None:
    env = TMazeEnv(2, length=3, passive=False)
    inject(env, goal=torch.tensor([1, -1]))
    seen = [[env.render(index) for index in range(2)]]
    for action in (2, 0, 0, 0, 0, 1):
        step(env, torch.tensor([action, action]))
        seen.append([env.render(index) for index in range(2)])
    assert seen[0][0].shape == (240, 360, 3)
    # all steps and both goals differ, but the agent comes back to where it started
    assert all(torch.equal(*pictures) for pictures in zip(seen[0], seen[2], strict=True))
    assert len({picture.numpy().tobytes() for pictures in seen for picture in pictures}) == 12
    found = (seen[0][0].int() - torch.tensor([140, 178, 0])).abs().amax(-1) < 8
    assert found[:115].any()
    assert not found[115:].any()
    # a very long corridor has a picture, too
    long = TMazeEnv(1, length=1_000)
    long.reset()
    assert long.render().shape == (240, 360, 3)


def test_both_arms_are_equally_likely() -> None:
    env = TMazeEnv(10_000, seed=0)
    env.reset()
    assert set(env.goal.tolist()) == {-1, 1}
    # six standard deviations
    assert env.goal.double().mean().abs() < 0.06


def play(env: TMazeEnv, policy: Any) -> tuple[float, float]:
    env.reset()
    total = torch.zeros(env.batch_size)
    for t in range(env.max_steps):
        data = step(env, policy(env, t))
        total += data["reward"][:, 0]
    return total.mean().item(), data["success"].float().mean().item()


def best(env: TMazeEnv, t: int) -> Tensor:
    return torch.tensor([expert(t, env.length, env.passive, int(g)) for g in env.goal])


def walker(env: TMazeEnv, t: int) -> Tensor:
    return torch.randint(4, env.batch_size)


@pytest.mark.parametrize("passive", [True, False])
def test_scores(passive: bool) -> None:
    """What docs/tasks/t_maze.md says."""
    torch.manual_seed(0)
    env = TMazeEnv(1_000, length=50, passive=passive, seed=0)
    assert play(env, best) == (1, 1)
    returns, success = play(env, walker)
    # behind the schedule nearly always, and never at the junction
    assert returns == pytest.approx(-0.99, abs=0.02)
    assert success == 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"length": 0}, "length must be at least 1, got 0"),
            ({"penalty": 0.1}, "penalty must be finite and not positive, got 0.1"),
            ({"penalty": -float("inf")}, "penalty must be finite"),
            ({"penalty": float("nan")}, "penalty must be finite"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TMazeEnv(**arguments)

    def test_goal(self) -> None:
        with pytest.raises(ValueError, match=r'"goal" must be 1 or -1.*got 0'):
            inject(TMazeEnv(3), goal=torch.tensor([1, 0, -1]))
        with pytest.raises(ValueError, match=r'"goal" of shape \(3,\), got \(3, 1\)'):
            inject(TMazeEnv(3), goal=torch.ones(3, 1))
