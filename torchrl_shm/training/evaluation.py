"""Run every test task once, as the benchmark defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module


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


@torch.no_grad()
def evaluate(policy: TensorDictModuleBase, env: EnvBase, *, seed: int = 0) -> Evaluation:
    """Run one episode per environment with the mean action.

    The gates of a memory that draws stay random, as in the released code, but come from a forked
    generator with a fixed seed, and so does all that the environment draws: evaluation neither
    disturbs training nor differs between calls.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of the environment, and of torch's default generator during the evaluation.

    Returns:
        Returns, success and the episodes.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import evaluate, make_actor_critic
        >>> env = WindEnv(split="test", max_steps=5)
        >>> operator = make_actor_critic(env, SHMModule, policy_keys=["observation"])
        >>> evaluate(operator.get_policy_operator(), env).returns.shape
        torch.Size([150])
    """
    transforms = get_env_transforms_from_module(policy)
    transformed = TransformedEnv(env, transforms)
    cuda = [env.device] if env.device is not None and env.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        transformed.set_seed(seed)
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
