"""Scores of a random player and of one who knows what is hidden, for every POPGym task.

python -m tests.benchmarks.scores > docs/results/tasks/scores.md
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.benchmarks._measure import table
from tests.envs.popgym._originals import FAMILIES, LEVELS, expert
from torchrl_shm.envs import popgym

_EPISODES = 1_000


def play(env: Any, player: Any) -> Tensor:
    """Returns `[B]` of one episode per environment."""
    data = env.reset()
    alive = torch.ones(env.num_envs, 1, dtype=torch.bool)
    returns = torch.zeros(env.num_envs, 1, dtype=torch.float64)
    while alive.any():
        data = env.step(data.set("action", player(env)))["next"]
        returns += data["reward"] * alive
        alive = alive & ~data["done"]
    return returns.squeeze(-1)


def random(env: Any) -> Tensor:
    """Uniform actions."""
    return env.full_action_spec["action"].rand()


def main() -> None:
    """Play and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[list[str]] = []
    for family in FAMILIES:
        make = getattr(popgym, f"{family}Env")
        for level in LEVELS:
            env = make(_EPISODES, level=level, seed=0)
            lazy = play(env, random)
            best = play(env, lambda env, family=family: expert(family, env))
            width = env.observation_spec["observation"].shape[-1]
            name = f"`{family}` {level}"
            scores = [f"{x.mean():.2f}" for x in (lazy, best)]
            rows.append([name, str(width), str(env.max_steps), *scores])
    print(table(["task", "observation", "steps at most", "random", "knows all"], rows))


if __name__ == "__main__":
    main()
