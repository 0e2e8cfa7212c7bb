"""What environments are made of and what others ask of them, see `BatchedEnv`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type

State = dict[str, Tensor]
"""What an episode is made of: tensors `[B, ...]`, replaced as a whole, never written to."""

Split = Literal["train", "test"]
"""Which list of tasks an environment plays."""

TEST_SEED = 20_000
"""Seed of episodes that are drawn for a test, so that every run is tested on the same ones."""


class Entry(NamedTuple):
    """Shape and dtype of one environment's part of a layout entry."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Transition(NamedTuple):
    """The result of a step.

    Attributes:
        state: the state after the step.
        reward: float32 of shape `[B, 1]`.
        terminated: bool of shape `[B, 1]`; `None` where the task never ends an episode.
        truncated: bool of shape `[B, 1]`; `None` where no time limit cuts an episode.
    """

    state: State
    reward: Tensor
    terminated: Tensor | None = None
    truncated: Tensor | None = None


class Plane(NamedTuple):
    """The tasks of running episodes whose entry `observation` is a position in the plane.

    Attributes:
        goal: centers of the goals, `[B, 2]`.
        goal_radius: radius of the goals.
        max_steps: number of steps after which the point starts elsewhere.
        drift: displacement per step that is not the agent's own, `[B, 2]`; `None` without one.
    """

    goal: Tensor
    goal_radius: float
    max_steps: int
    drift: Tensor | None = None


def ask_env(env: Any, name: str, default: Any = None) -> Any:
    """Get what an environment says of itself, see `BatchedEnv`.

    Args:
        env: an environment of any kind; its transforms are not asked.
        name: name of an attribute or a method.
        default: what to return if the environment itself has no such attribute.

    Returns:
        The attribute, or `default`.

    Examples:
        >>> from torchrl_shm.envs import WindEnv, ask_env
        >>> env = WindEnv(split="test")
        >>> ask_env(env, "split"), ask_env(env, "num_lives", default=1)
        ('test', 1)
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    # not `hasattr`: batches of other environments forward names that their members may lack
    own = name in vars(env) or hasattr(type(env), name)
    return getattr(env, name) if own else default


@contextmanager
def play_test(env: EnvBase, seed: int, deterministic: bool) -> Generator[None]:
    """Play the same episodes of a test each time, without a trace in what is drawn afterwards.

    Args:
        env: environment, with all transforms; it is seeded anew.
        seed: seed of torch's default generator meanwhile, and with `TEST_SEED` of the environment.
        deterministic: policies take the mean, or the most likely action; else they sample it.

    Examples:
        >>> import torch
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.envs.contract import play_test
        >>> drawn = []
        >>> for _ in range(2):
        ...     with play_test(WindEnv(2), seed=0, deterministic=True):
        ...         drawn.append(torch.rand(()))
        >>> bool(drawn[0] == drawn[1])
        True
    """
    cuda = [env.device] if env.device is not None and env.device.type == "cuda" else []
    actions = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with torch.random.fork_rng(cuda), set_exploration_type(actions):
        torch.manual_seed(seed)
        env.set_seed(TEST_SEED + seed)
        yield
