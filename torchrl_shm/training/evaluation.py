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
from torchrl.envs import EnvBase, StepCounter, TransformedEnv
from torchrl.envs.utils import step_mdp
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm.envs.contract import TEST_SEED, ask_env, play_test
from torchrl_shm.training.finite import FiniteSteps

# of an evaluation in an environment that may never end an episode
_ENDLESS_STEPS = 1000
# of an evaluation that nobody has bounded
_MOST_STEPS = 10**6


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        returns: undiscounted sum of rewards per environment, float64 of shape `[B]`.
        success: whether the task's goal was met per environment, bool of shape `[B]`; `None`
            for tasks without an entry `success`.
        rollout: the episodes, of shape `[B, T]`, where they were asked for; a row that has ended
            repeats its last step.
    """

    returns: Tensor
    success: Tensor | None
    rollout: TensorDictBase | None = None

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
            "gymnasium knows of no time limit for this task: episodes of the evaluation that do "
            f"not end by themselves are cut after {max_steps:,} steps (experiment.max_test_steps), "
            "those of training never\n"
            "env.max_episode_steps=1000 ends both; where none ends by itself, return stays nan "
            "without it, and the memory of shm needs a bound, memory.clamp=100",
            file=sys.stderr,
            flush=True,
        )
    return env if max_steps is None else TransformedEnv(env, StepCounter(max_steps))


@torch.no_grad()
def evaluate(
    policy: TensorDictModuleBase,
    env: EnvBase,
    *,
    seed: int = 0,
    deterministic: bool = True,
    keep_rollout: bool = False,
) -> Evaluation:
    """Run one episode per environment, with the mean or the most likely action.

    Random gates of a memory stay random, as in the released code, but they, sampled actions and all
    that the environment draws come from a forked generator with a fixed seed: evaluation neither
    changes training nor differs between calls.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of torch's default generator and of the environment during the evaluation.
        deterministic: take the mean, or the most likely action; else sample it, as in training. An
            agent that has to guess, and is told that it was wrong, may repeat the same guess if the
            most likely action is always taken.
        keep_rollout: keep all steps. Without, memory does not grow with the length of the episodes.

    Returns:
        Returns and success, and the episodes if they are kept.

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
    with play_test(transformed, seed, deterministic):
        step = transformed.reset()
        returns = torch.zeros(step.shape, dtype=torch.float64, device=step.device)
        success: Tensor | None = None
        alive = torch.ones(step.shape, dtype=torch.bool, device=step.device)
        steps: list[Any] = []
        # as TorchRL's `rollout` does, which keeps all steps
        for _ in range(_MOST_STEPS):
            step.update(policy(step))
            step = transformed.step(step)
            step.pop("_step", None)
            came_next: Any = step["next"]
            returns += came_next["reward"].squeeze(-1).double() * alive
            if "success" in came_next.keys():
                now = came_next["success"].squeeze(-1) & alive
                success = now if success is None else success | now
            if keep_rollout:
                steps.append(torch.where(alive, step, steps[-1]) if steps else step.copy())
            alive = alive & ~came_next["done"].squeeze(-1)
            if not bool(alive.any()):
                break
            step = step_mdp(step)
            # a row that has ended waits
            if not bool(alive.all()):
                step.set("_step", alive)
    rollout: Any = torch.stack(steps, -1) if keep_rollout else None
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
