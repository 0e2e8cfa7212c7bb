"""Run every test task once, as the benchmark defines it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import (
    EnvBase,
    ExplorationType,
    StepCounter,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm.envs.contract import TEST_SEED, ask_env
from torchrl_shm.training.finite import FiniteSteps

# of an evaluation in an environment that may never end an episode
_ENDLESS_STEPS = 1000


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        returns: undiscounted sum of rewards per environment, float64 of shape `[B]`.
        success: whether the task's goal was met per environment, bool of shape `[B]`; `None`
            for tasks without an entry `success`.
        rollout: the episodes, of shape `[B, T]`; steps after an episode's end are in it, too.
    """

    returns: Tensor
    success: Tensor | None
    rollout: TensorDictBase

    @property
    def mean_return(self) -> float:
        """Mean over environments."""
        return float(self.returns.mean())

    @property
    def success_rate(self) -> float | None:
        """Share of environments, in [0, 1]."""
        return None if self.success is None else float(self.success.double().mean())


def make_test_env(
    make_env: Callable[..., EnvBase],
    *,
    num_episodes: int,
    max_steps: int | None = None,
    device: torch.device | str | None = None,
) -> EnvBase:
    """Build the environment that an agent is tested on.

    Tasks with a list of test tasks (environments with a `split`) play each of them once.
    Others draw `num_episodes` episodes from a fixed seed. Where an environment says that it is
    `endless`, its episodes are cut, and a line on stderr says so.

    Args:
        make_env: makes an environment from `split="test"`, or from `num_envs` and `seed`.
        num_episodes: episodes where the task has no list of its own.
        max_steps: steps after which an episode is cut. `None` is 1,000 for environments that are
            `endless`, and no bound for all others.
        device: device of the environment.

    Returns:
        An environment for `evaluate`: the first episode of each of its rows is a test.

    Examples:
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.training import make_test_env
        >>> make_test_env(WindEnv, num_episodes=10).num_envs
        150
    """
    options: dict[str, Any] = {} if device is None else {"device": device}
    # asked of an environment, because a factory from a configuration shows no signature; with a
    # seed, because one is drawn from torch's default generator otherwise
    if ask_env(make_env(num_envs=1, seed=TEST_SEED, **options), "split") is not None:
        env = make_env(split="test", **options)
    else:
        env = make_env(num_envs=num_episodes, seed=TEST_SEED, **options)
    if max_steps is None and ask_env(env, "endless", default=False):
        max_steps = _ENDLESS_STEPS
        print(
            f"this task has no time limit: episodes of the evaluation are cut after {max_steps:,} "
            "steps; experiment.max_test_steps changes that",
            file=sys.stderr,
            flush=True,
        )
    return env if max_steps is None else TransformedEnv(env, StepCounter(max_steps))


@torch.no_grad()
def evaluate(policy: TensorDictModuleBase, env: EnvBase, *, seed: int = 0) -> Evaluation:
    """Run one episode per environment with the mean action.

    Random gates of a memory stay random, as in the released code, but they and all that the
    environment draws come from a forked generator with a fixed seed: evaluation neither changes
    training nor differs between calls.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of torch's default generator and of the environment during the evaluation.

    Returns:
        Returns, success and the episodes.

    Raises:
        FloatingPointError: an observation or a memory is not finite.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import evaluate
        >>> from torchrl_shm.networks import make_actor_critic
        >>> env = WindEnv(split="test", max_steps=5)
        >>> operator = make_actor_critic(env, SHMModule, policy_keys=["observation"])
        >>> evaluate(operator.get_policy_operator(), env).returns.shape
        torch.Size([150])
    """
    transforms = get_env_transforms_from_module(policy)
    transformed = TransformedEnv(env, transforms, auto_unwrap=False)
    transformed.append_transform(FiniteSteps())
    cuda = [env.device] if env.device is not None and env.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        transformed.set_seed(TEST_SEED + seed)
        rollout = transformed.rollout(
            max_steps=10**6, policy=policy, break_when_all_done=True, return_contiguous=True
        )
    done = rollout["next", "done"].squeeze(-1)
    # steps up to and with the first done count
    alive = done.long().cumsum(-1) - done.long() == 0
    returns = (rollout["next", "reward"].squeeze(-1).double() * alive).sum(-1)
    success = rollout.get(("next", "success"), None)
    if success is not None:
        success = (success.squeeze(-1) & alive).any(-1)
    return Evaluation(returns, success, rollout)


def episode_statistics(batch: TensorDictBase) -> dict[str, float]:
    """Return and success of the episodes that ended in a batch; NaN if none did.

    Args:
        batch: sequences `[B, T]` of a `RolloutCollector`.

    Returns:
        `return` and, where the task has it, `success`.
    """
    ended: Any = batch["next"][batch["next", "done"].squeeze(-1)]
    row = {"return": float(ended["episode_reward"].mean())}
    if "success" in ended.keys():
        row["success"] = float(ended["success"].double().mean())
    return row
