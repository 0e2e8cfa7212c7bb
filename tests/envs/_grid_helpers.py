"""What the tests of Key-to-Door and Visual Match share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.envs._helpers import inject, step
from torchrl_shm.envs._grid import GridEnv
from torchrl_shm.envs._situations import APPLE_CELLS

FIXTURES = Path(__file__).parents[1] / "fixtures"
UP, DOWN, LEFT, RIGHT = range(4)


def recorded(name: str) -> dict[str, Tensor]:
    """Twelve episodes of an original, by policies from random to greedy."""
    with np.load(FIXTURES / f"{name}.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data}


def check_replay(env: GridEnv, layout: dict[str, Tensor], data: dict[str, Tensor]) -> None:
    """Play recorded actions and compare everything, byte by byte."""
    seen = inject(env, **layout)
    assert torch.equal(seen["observation"], data["obs"][:, 0])
    final = torch.zeros(len(data["success"]))
    one_hot = torch.eye(4)
    for t in range(env.max_steps):
        action, reward = data["action"][:, t].long(), data["reward"][:, t]
        seen = step(env, action)
        assert torch.equal(seen["observation"], data["obs"][:, t + 1])
        assert torch.equal(seen["reward"][:, 0], reward)
        assert torch.equal(seen["previous_reward"][:, 0], reward)
        assert torch.equal(seen["previous_action"], one_hot[action])
        assert (seen["done"] == (t + 1 == env.max_steps)).all()
        assert torch.equal(seen["terminated"], seen["done"])
        assert not seen["truncated"].any()
        if t >= sum(env.frames[:2]):
            final += reward
        assert torch.equal(seen["success"][:, 0], final > 0)
    assert torch.equal(seen["success"][:, 0], data["success"])
    assert 0 < data["success"].sum() < len(data["success"])


class Greedy:
    """Goes the shortest way to the key or the right field, and to the next apple that can be had.

    It knows the whole board and all rules, but does not plan which apples to take in which order.
    """

    def __init__(self, env: GridEnv) -> None:
        tables = env._tables
        after = tables.after.view(-1, 4)
        last = self._steps_to(after, tables.success)
        # from where the last room can be won
        won = last[tables.follows[tables.follows]].isfinite()
        first = self._steps_to(after, won & (tables.phase == 0))
        distance = torch.where(tables.phase == 0, first, last)
        self.env, self.action = env, distance[after].argmin(-1)
        self.cells = torch.tensor(APPLE_CELLS)

    @staticmethod
    def _steps_to(after: Tensor, goal: Tensor) -> Tensor:
        steps = torch.where(goal, 0.0, torch.inf)
        for _ in range(30):
            steps = torch.minimum(steps, steps[after].min(-1)[0] + 1)
        return steps

    def __call__(self) -> Tensor:
        state, player = self.env._running(), self.env.player
        way = self.cells - player.unsqueeze(1)
        steps = way.abs().sum(-1)
        # to eat what grows below itself, the player has to leave and come back
        steps = torch.where(steps == 0, 2, steps)
        ripe_in = (state["ripe_at"][:, :-1] - state["step_count"] + 1).clamp(max=10_000)
        nearest = (torch.maximum(steps, ripe_in) * 100 + steps).argmin(-1)
        row, column = way[torch.arange(len(way)), nearest].unbind(-1)
        vertical = torch.where(row < 0, UP, DOWN)
        horizontal = torch.where(column < 0, LEFT, RIGHT)
        # no apple lies at (5, 5), so where nothing is left to go, up is free or a step aside
        aside = torch.where(player[:, 0] > 1, UP, DOWN)
        apple = torch.where(column != 0, horizontal, torch.where(row != 0, vertical, aside))
        return torch.where(self.env.phase == 1, apple, self.action[state["situation"]])


def play(env: GridEnv, greedy: bool) -> tuple[Tensor, Tensor]:
    """Return and success of one episode per environment, by the greedy or a random policy."""
    env.reset()
    policy, total = Greedy(env), torch.zeros(env.batch_size)
    generator = torch.Generator().manual_seed(0)
    for _ in range(env.max_steps):
        action = policy() if greedy else torch.randint(4, env.batch_size, generator=generator)
        data = step(env, action)
        total += data["reward"][:, 0]
    assert data["done"].all()
    return total, data["success"][:, 0].float()
