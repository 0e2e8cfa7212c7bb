"""Environments of the packages gymnasium and popgym."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import PurePath
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_shm.checks import check_count


def make_gym_env(
    id: str,
    num_envs: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    vectorized: bool = False,
    previous_action: bool = False,
    previous_reward: bool = False,
    seed: int | None = None,
    device: torch.device | str | int = "cpu",
) -> EnvBase:
    """Make a batch of any gymnasium environment.

    They are stepped one after the other, or as one where the task comes with a vector environment.

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
    choice. It becomes the entry `action_mask`, which networks read, see `make_actor_critic`. Of an
    index of which it allows nothing, everything is allowed.

    ## Seeds

    Environment 0 is reset with `seed`, and every further one with a seed drawn from the one before
    it, as TorchRL does in `set_seed`. Later episodes go on with the generator of the environment.

    ## Vector environments

    Some packages step many environments by one call, in C++ or on a GPU. `vectorized=True` uses
    what the task's registration names as its `vector_entry_point`. It is seeded with `seed`, and
    seeds its rows itself. One that starts new episodes one step late (`AutoresetMode.NEXT_STEP`),
    as those that come with gymnasium do, cannot be stepped as TorchRL's contract asks, and is
    refused.

    Args:
        id: gymnasium's name of the environment, such as `"CartPole-v1"`; `"module:Name-v0"` imports
            a module that registers it.
        num_envs: number of environments B.
        kwargs: arguments of the environment, such as `{"is_slippery": False}`.
        max_episode_steps: time limit, in place of the environment's own.
        vectorized: use the vector environment that comes with the task.
        previous_action: emit `previous_action`, one-hot for indices, 0 at reset.
        previous_reward: emit `previous_reward`, float32 of shape `[B, 1]`, 0 at reset.
        seed: seed of the environments; `None` leaves them unseeded.
        device: device of the tensors.

    Returns:
        A TorchRL environment of shape `[B]`, whose `policy_keys` name all observations. `endless`
        is true where no time limit is known.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: gymnasium does not know `id`, or cannot import or make it, a space cannot be
            played, an observation has a name that is taken, an action mask cannot be read,
            a reset or a step does not return what gymnasium asks for,
            `num_envs` or `max_episode_steps` is not a whole number, or not positive, or
            `vectorized` and the task has no vector environment that can be played.
        RuntimeError: an environment cannot be reset. Later resets and steps that raise do so, too,
            with the number of the environment.
        FloatingPointError: an episode starts with a number that is not finite, or a number is
            beyond float32.

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
    if vectorized:
        rows: Any = _rows().Together(_make_together(id, num_envs, options), id)
    else:
        rows = _rows().OneByOne([_make(id, "make", options) for _ in range(num_envs)], id)
    previous = {"previous_action": previous_action, "previous_reward": previous_reward}
    env = _task(rows, id, seed, device, **previous)
    env.endless = rows.endless
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
    made = [_wrap_popgym(name, previous_action, antialias) for _ in range(num_envs)]
    return _task(_rows().OneByOne(made, name), name, seed, device)


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"cannot import {module} ({error}); install it with `pip install 'torchrl_shm[popgym]'`"
        ) from error


def _rows() -> Any:
    # it stands on gymnasium, which need not be installed
    _import("gymnasium")
    return import_module("torchrl_shm.envs._gym_rows")


def _make(id: str, maker: str, options: dict[str, Any], **given: Any) -> Any:
    """Make one environment, or one of many, or say in a line why it cannot be made."""
    gymnasium: Any = _import("gymnasium")
    try:
        return getattr(gymnasium, maker)(id, **options, **given)
    except ModuleNotFoundError as error:
        missing = _line(error).partition(". Environment registration")[0]
        advice = "is it installed? For a file of this folder set PYTHONPATH=."
        module, colon, name = id.partition(":")
        if colon and module.endswith(".py"):
            file = PurePath(module)
            advice = f"write {file.stem}:{name}, with PYTHONPATH={file.parent}"
        raise ValueError(f"{id!r} cannot be imported: {missing}; {advice}") from error
    except gymnasium.error.UnregisteredEnv as error:
        # of `module:Id` only what stands behind the colon is a name
        module, _, name = id.rpartition(":")
        near = get_close_matches(name, gymnasium.registry, 3)
        if near:
            # what the module has registered needs it in another process, too
            near = [f"{module}:{x}" for x in near] if module else near
            advice = f"did you mean {' or '.join(near)}?"
        elif module:
            advice = f"{module} was imported and registers none of this name"
        else:
            advice = f"{_line(error)} One of your own is module:{name}"
        raise ValueError(f"gymnasium has no environment {id!r}: {advice}") from error
    except Exception as error:
        words = ", ".join([repr(id), *(f"{name}={value!r}" for name, value in options.items())])
        raise ValueError(
            f"gymnasium.{maker}({words}) raised {type(error).__name__}: {_line(error)}"
        ) from error


def _make_together(id: str, num_envs: int, options: dict[str, Any]) -> Any:
    """Make the vector environment of a task, with new episodes in the same step if it lets us."""
    given = {"num_envs": num_envs, "vectorization_mode": "vector_entry_point"}
    made = _make(id, "make_vec", options, **given)
    mode = _import("gymnasium.vector").AutoresetMode
    if made.metadata.get("autoreset_mode", mode.NEXT_STEP) != mode.NEXT_STEP:
        return made
    try:
        again = _make(id, "make_vec", {"autoreset_mode": mode.SAME_STEP, **options}, **given)
    except ValueError:
        # it has no such argument, and is refused for its mode
        return made
    made.close()
    return again


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _wrap_popgym(name: str, previous_action: bool, antialias: bool) -> Any:
    wrappers: Any = _import("popgym.wrappers")
    env = getattr(_import("popgym.envs"), name)()
    if previous_action:
        env = wrappers.PreviousAction(env)
    if antialias:
        env = wrappers.Antialias(env)
    env = wrappers.Flatten(env)
    return wrappers.DiscreteAction(env) if hasattr(env.action_space, "nvec") else env


def _task(
    rows: Any, name: str, seed: int | None, device: torch.device | str | int, **previous: bool
) -> Any:
    from torchrl_shm.envs._gym_task import GymTask

    env: Any = GymTask(rows, name=name, device=device, **previous)
    env.policy_keys = tuple(env.observation_spec.keys(True, True))
    if seed is not None:
        env.set_seed(seed)
    return env
