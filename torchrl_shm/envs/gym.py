"""Environments of the packages gymnasium and popgym."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase, SerialEnv, Transform, TransformedEnv
from torchrl.envs.libs.gym import GymWrapper

from torchrl_shm.checks import check_count


def make_gym_env(
    id: str,
    num_envs: int = 1,
    *,
    previous_action: bool = False,
    previous_reward: bool = False,
    seed: int | None = None,
    device: torch.device | str | int = "cpu",
) -> EnvBase:
    """Make a batch of any gymnasium environment, stepped one after the other.

    Args:
        id: gymnasium's name of the environment, such as `"CartPole-v1"`.
        num_envs: number of environments B.
        previous_action: emit `previous_action`, one-hot for discrete actions, 0 at reset.
        previous_reward: emit `previous_reward`, float32 of shape `[B, 1]`, 0 at reset.
        seed: seed of the environments; `None` leaves them unseeded.
        device: device of the tensors.

    Returns:
        A TorchRL environment of shape `[B]`. Discrete actions are indices. Discrete observations
        are one-hot, and tuples and dictionaries of observations one vector, as by gymnasium's
        `FlattenObservation`; all numbers but bytes become float32. `policy_keys` names
        `observation`, which is `pixels` where it is a picture, and what was asked for.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: gymnasium does not know `id`, its observations are of no fixed size, or
            `num_envs` is not a whole number, or not positive.

    Examples:
        >>> from torchrl_shm.envs import make_gym_env
        >>> env = make_gym_env("CartPole-v1", 2, previous_action=True, seed=0)
        >>> env.rollout(3)["previous_action"].shape
        torch.Size([2, 3, 2])
    """
    gymnasium: Any = _import("gymnasium")
    try:
        gymnasium.spec(id)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium has no environment {id!r}: {error}") from error
    return _batch(partial(_wrap_gym, id), num_envs, previous_action, previous_reward, seed, device)


def make_popgym_env(
    name: str,
    num_envs: int = 1,
    *,
    previous_action: bool = True,
    antialias: bool = True,
    seed: int | None = None,
    device: torch.device | str | int = "cpu",
) -> EnvBase:
    """Make a batch of an original POPGym environment, in Python, one after the other.

    The observation is that of our own environments, `torchrl_shm.envs.popgym`, which are the same
    tasks and much faster: categories are one-hot, whatever the wrappers.

    Args:
        name: name and level, such as `"RepeatPreviousEasy"`.
        num_envs: number of environments B.
        previous_action: wrap in popgym's `PreviousAction`.
        antialias: wrap in popgym's `Antialias`.
        seed: seed of the environments; `None` leaves them unseeded.
        device: device of the tensors.

    Returns:
        A TorchRL environment of shape `[B]`. Discrete actions are indices, of a cell on boards.

    Raises:
        ImportError: popgym is not installed.
        ValueError: popgym has no such environment, or `num_envs` is not a whole number, or not
            positive.

    Examples:
        >>> from torchrl_shm.envs import make_popgym_env
        >>> env = make_popgym_env("RepeatPreviousEasy", 2, seed=0)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 10])
    """
    envs = _import("popgym.envs")
    if not isinstance(getattr(envs, name, None), type):
        raise ValueError(f"popgym has no environment {name!r}; names are like 'AutoencodeEasy'")
    make = partial(_wrap_popgym, name, previous_action, antialias)
    return _batch(make, num_envs, False, False, seed, device)


class _Previous(Transform):
    """Emits the action and the reward that led to an observation."""

    def __init__(self, action: bool, reward: bool) -> None:
        super().__init__()
        self.action = action
        self.reward = reward

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Declare the new entries."""
        for name, size in self._sizes().items():
            shape = torch.Size((*observation_spec.shape, size))
            observation_spec[name] = Unbounded(shape, device=observation_spec.device)
        return observation_spec

    def _sizes(self) -> dict[str, int]:
        spec: TensorSpec = self.parent.action_spec_unbatched  # pyright: ignore
        size = int(spec.n) if isinstance(spec, Categorical) else spec.shape.numel()
        return {
            **({"previous_action": size} if self.action else {}),
            **({"previous_reward": 1} if self.reward else {}),
        }

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self.action:
            action: Tensor = tensordict.get("action")
            if isinstance(self.parent.action_spec_unbatched, Categorical):  # pyright: ignore
                action = torch.nn.functional.one_hot(action, self._sizes()["previous_action"])
            shape = (*next_tensordict.batch_size, -1)
            next_tensordict.set("previous_action", action.float().reshape(shape))
        if self.reward:
            next_tensordict.set("previous_reward", next_tensordict.get("reward").float())
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # rows that go on are put back by TorchRL
        for name, size in self._sizes().items():
            shape = (*tensordict_reset.batch_size, size)
            tensordict_reset.set(name, torch.zeros(shape, device=tensordict_reset.device))
        return tensordict_reset


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"cannot import {module} ({error}); install it with `pip install 'torchrl_shm[popgym]'`"
        ) from error


def _wrap_gym(id: str) -> EnvBase:
    gymnasium: Any = _import("gymnasium")
    env = _with_numbers(gymnasium.make(id), id)
    return GymWrapper(env, categorical_action_encoding=True)


def _wrap_popgym(name: str, previous_action: bool, antialias: bool) -> EnvBase:
    wrappers: Any = _import("popgym.wrappers")
    env = getattr(_import("popgym.envs"), name)()
    if previous_action:
        env = wrappers.PreviousAction(env)
    if antialias:
        env = wrappers.Antialias(env)
    env = wrappers.Flatten(env)
    if hasattr(env.action_space, "nvec"):
        env = wrappers.DiscreteAction(env)
    return GymWrapper(_with_numbers(env, name), categorical_action_encoding=True)


def _with_numbers(env: Any, name: str) -> Any:
    """Make vectors of observations that are indices or made of parts; indices become one-hot."""
    spaces: Any = _import("gymnasium.spaces")
    wrappers: Any = _import("gymnasium.wrappers")
    space = env.observation_space
    if not isinstance(space, spaces.Box):
        if not space.is_np_flattenable:
            raise ValueError(
                f"observations of {name} are of no fixed size: {space}; register it with a "
                "wrapper that makes arrays of them, such as one of gymnasium.wrappers"
            )
        env = wrappers.FlattenObservation(env)
        space = env.observation_space
    # bytes are pictures, and stay small
    if space.dtype not in (np.float32, np.uint8):
        single = partial(np.asarray, dtype=np.float32)
        bounds = (single(space.low), single(space.high))
        env = wrappers.TransformObservation(env, single, spaces.Box(*bounds, dtype=np.float32))
    return env


def _transformed(make: Any, action: bool, reward: bool) -> EnvBase:
    return TransformedEnv(make(), _Previous(action, reward))


def _batch(
    make: Any,
    num_envs: int,
    previous_action: bool,
    previous_reward: bool,
    seed: int | None,
    device: torch.device | str | int,
) -> EnvBase:
    check_count("num_envs", num_envs)
    if previous_action or previous_reward:
        # inside, so that the whole takes further transforms like any other environment
        make = partial(_transformed, make, previous_action, previous_reward)
    env: Any = SerialEnv(num_envs, make, device=torch.device(device))
    env.policy_keys = (
        # what TorchRL calls an observation that is a picture
        "pixels" if "pixels" in env.observation_spec.keys() else "observation",
        *(["previous_action"] if previous_action else []),
        *(["previous_reward"] if previous_reward else []),
    )
    if seed is not None:
        env.set_seed(seed)
    return env
