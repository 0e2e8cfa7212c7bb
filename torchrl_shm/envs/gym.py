"""Environments of the packages gymnasium and popgym."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torchrl.envs import EnvBase, SerialEnv, TransformedEnv

from torchrl_shm.checks import check_count


def make_gym_env(
    id: str,
    num_envs: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    previous_action: bool = False,
    previous_reward: bool = False,
    seed: int | None = None,
    device: torch.device | str | int = "cpu",
) -> EnvBase:
    """Make a batch of any gymnasium environment, stepped one after the other.

    ## Observations

    Boxes keep their shape. Bytes stay bytes, all other numbers become float32, and indices
    (`Discrete`, `MultiDiscrete`) one-hot. The entries of a `Dict` keep their names, those of a
    `Tuple` are numbered below `observation`, both at any depth; anything else is one entry,
    `observation`, or `pixels` where it is a picture of bytes.

    ## Actions

    A `Box` whose bounds are all finite is offered as numbers from -1 to 1 of the same shape,
    whatever its bounds. A policy draws numbers from a Gaussian, some of which lie outside: what the
    environment receives is clipped into the bounds, and the log-probability is that of the number
    that was drawn. So the clipping is here, and data hold the number itself; a policy that reads
    what was collected finds its own probability again. Where a bound is missing, numbers are sent
    as they are, clipped at the other bound, and counted from 1 inside of it if 0 is not inside;
    whole numbers are rounded. `Discrete` is an index from 0, `MultiDiscrete` are several in one
    row, `MultiBinary` are bits.

    Of `Discrete` and `MultiDiscrete`, an action mask is read where there is one: in
    `info["action_mask"]`, or an entry `action_mask` or `mask` of a `Dict` with a flag for every
    choice. It becomes the entry `action_mask`, which networks read, see `make_actor_critic`.

    ## Seeds

    Environment 0 is reset with `seed`, and every further one with a seed drawn from the one before
    it, as TorchRL does in `set_seed`. Later episodes go on with the generator of the environment.

    Vector environments of gymnasium are not used: those that come with it start new episodes one
    step late (`AutoresetMode.NEXT_STEP`), which TorchRL's `GymWrapper` refuses.

    Args:
        id: gymnasium's name of the environment, such as `"CartPole-v1"`; `"module:Name-v0"` imports
            a module that registers it.
        num_envs: number of environments B.
        kwargs: arguments of the environment, such as `{"is_slippery": False}`.
        max_episode_steps: time limit, in place of the environment's own.
        previous_action: emit `previous_action`, one-hot for indices, 0 at reset.
        previous_reward: emit `previous_reward`, float32 of shape `[B, 1]`, 0 at reset.
        seed: seed of the environments; `None` leaves them unseeded.
        device: device of the tensors.

    Returns:
        A TorchRL environment of shape `[B]`, whose `policy_keys` name all observations. `endless`
        is true where no time limit is known.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: gymnasium does not know `id` or cannot make it, a space cannot be played, or
            `num_envs` or `max_episode_steps` is not a whole number, or not positive.
        RuntimeError: an environment cannot be reset.
        FloatingPointError: an episode starts with a number that is not finite.

    Examples:
        >>> from torchrl_shm.envs import make_gym_env
        >>> env = make_gym_env("CartPole-v1", 2, previous_action=True, seed=0)
        >>> env.rollout(3)["previous_action"].shape
        torch.Size([2, 3, 2])
        >>> options = {"desc": ["SFFG"], "is_slippery": False}
        >>> make_gym_env("FrozenLake-v1", kwargs=options).reset()["observation"]
        tensor([[1., 0., 0., 0.]])
    """
    check_count("num_envs", num_envs)
    options: dict[str, Any] = dict(kwargs or {})
    if max_episode_steps is not None:
        check_count("max_episode_steps", max_episode_steps)
        options["max_episode_steps"] = max_episode_steps
    first = _make_gymnasium(id, options)
    endless = first.spec is None or first.spec.max_episode_steps is None
    # refuses spaces; whether there is a mask in `info` is known after a reset only
    task: Any = _task(first, name=id)
    mask_in_info = task.shows_mask()
    first.close()
    previous = (previous_action, previous_reward)
    make = partial(_wrap_gym, id, options, mask_in_info=mask_in_info, previous=previous)
    env: Any = _batch(make, num_envs, seed, device)
    env.endless = endless
    return env


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
    check_count("num_envs", num_envs)
    return _batch(partial(_wrap_popgym, name, previous_action, antialias), num_envs, seed, device)


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"cannot import {module} ({error}); install it with `pip install 'torchrl_shm[popgym]'`"
        ) from error


def _make_gymnasium(id: str, options: dict[str, Any]) -> Any:
    """Make one environment, or say in a line why it cannot be made."""
    gymnasium: Any = _import("gymnasium")
    try:
        return gymnasium.make(id, **options)
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        # of `module:Id` only what stands behind the colon is a name
        near = get_close_matches(id.rpartition(":")[2], gymnasium.registry, 3)
        advice = f"did you mean {' or '.join(near)}?" if near else _line(error)
        raise ValueError(f"gymnasium has no environment {id!r}: {advice}") from error
    except Exception as error:
        given = ", ".join([repr(id), *(f"{name}={value!r}" for name, value in options.items())])
        raise ValueError(
            f"gymnasium.make({given}) raised {type(error).__name__}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _wrap_gym(id: str, options: dict[str, Any], row: int = 0, **wrapped: Any) -> EnvBase:
    return _task(_make_gymnasium(id, options), name=id, row=row, **wrapped)


def _wrap_popgym(
    name: str, previous_action: bool, antialias: bool, row: int = 0, **wrapped: Any
) -> EnvBase:
    wrappers: Any = _import("popgym.wrappers")
    env = getattr(_import("popgym.envs"), name)()
    if previous_action:
        env = wrappers.PreviousAction(env)
    if antialias:
        env = wrappers.Antialias(env)
    env = wrappers.Flatten(env)
    if hasattr(env.action_space, "nvec"):
        env = wrappers.DiscreteAction(env)
    return _task(env, name=name, row=row, **wrapped)


def _task(env: Any, *, previous: tuple[bool, bool] = (False, False), **options: Any) -> EnvBase:
    # what stands on gymnasium, which need not be installed
    from torchrl_shm.envs._gym_task import GymTask, Previous

    task = GymTask(env, **options)
    # inside, so that the whole takes further transforms like any other environment
    return TransformedEnv(task, Previous(*previous)) if any(previous) else task


def _batch(make: Any, num_envs: int, seed: int | None, device: torch.device | str | int) -> EnvBase:
    rows = [{"row": row} for row in range(num_envs)]
    env: Any = SerialEnv(num_envs, make, create_env_kwargs=rows, device=torch.device(device))
    env.policy_keys = tuple(env.observation_spec.keys(True, True))
    if seed is not None:
        env.set_seed(seed)
    return env
