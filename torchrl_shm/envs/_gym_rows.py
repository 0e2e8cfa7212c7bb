"""Environments of gymnasium that are stepped together, one after the other or as one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from torchrl_shm.checks import ACTION_MASK

# what environments of gymnasium return
_STARTS = ("observation", "info")
_STEPS = ("observation", "reward", "terminated", "truncated", "info")


class Row(NamedTuple):
    """What one environment shows.

    Attributes:
        observation: an element of its observation space.
        mask: `info["action_mask"]`; `None` where there is none.
        reward: reward of the step.
        terminated: whether the step ended the episode for good.
        truncated: whether a limit ended it.
    """

    observation: Any
    mask: Any = None
    reward: Any = 0.0
    terminated: bool = False
    truncated: bool = False


class Rows(Protocol):
    """B environments of gymnasium.

    Attributes:
        num_envs: number of environments B.
        action_space: space of the action of one.
        observation_space: space of the observation of one.
        endless: whether no time limit is known.
    """

    num_envs: int
    action_space: Any
    observation_space: Any
    endless: bool

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> Iterable[Row]:
        """Start episodes in some rows, each with a seed or none."""
        ...

    def step(self, rows: Sequence[int], actions: np.ndarray) -> Iterable[Row]:
        """Step some rows; there are actions of all."""
        ...

    def render(self, row: int) -> Any:
        """Picture of a row; `None` where there is none."""
        ...

    def close(self) -> None:
        """Close all."""
        ...


class OneByOne:
    """Environments that are stepped one after the other.

    What a row shows is yielded before the next row is stepped, because environments may share the
    array that they give.

    Args:
        envs: the environments.
        name: their name, for errors.

    Raises:
        RuntimeError: one of them cannot be reset.
        ValueError: one of them does not return what gymnasium asks for.
    """

    def __init__(self, envs: Sequence[Any], name: str) -> None:
        self.envs, self._name = list(envs), name
        self.num_envs = len(self.envs)
        self.action_space, self.observation_space = envs[0].action_space, envs[0].observation_space
        self.endless = _is_endless(envs[0])
        self._last = ["the first reset, without a seed,"] * self.num_envs

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> Iterable[Row]:
        """Start episodes in some rows, each with a seed or none."""
        for row, seed in zip(rows, seeds, strict=True):
            if seed is not None:
                self._last[row] = f"reset(seed={seed})"
            try:
                given = self.envs[row].reset(seed=seed)
            except Exception as error:
                raise _named(f"{self._of(row)}: {self._last[row]}", error) from error
            observation, info = _parts(given, _STARTS, f"{self._of(row)}: {self._last[row]}")
            if not self._last[row].startswith("a reset"):
                self._last[row] = f"a reset after {self._last[row]}"
            yield Row(observation, info.get(ACTION_MASK))

    def step(self, rows: Sequence[int], actions: np.ndarray) -> Iterable[Row]:
        """Step some rows; `RuntimeError` where one of them raises."""
        index = isinstance(self.action_space, spaces.Discrete)
        for row in rows:
            # as its own samples are
            action = self.action_space.dtype.type(actions[row]) if index else actions[row, ...]
            try:
                given = self.envs[row].step(action)
            except Exception as error:
                raise _named(f"{self._of(row)}: a step", error) from error
            parts = _parts(given, _STEPS, f"{self._of(row)}: a step")
            observation, reward, terminated, truncated, info = parts
            yield Row(observation, info.get(ACTION_MASK), reward, terminated, truncated)

    def render(self, row: int) -> Any:
        """Picture of a row, where the environments were made with `render_mode="rgb_array"`."""
        return self.envs[row].render() if self.envs[row].render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close all."""
        for env in self.envs:
            env.close()

    def _of(self, row: int) -> str:
        return f"environment {row} of {self._name}"


class Together:
    """A vector environment of gymnasium: all rows are stepped by one call.

    TorchRL steps, looks at what ended, and asks for new episodes. A vector environment starts them
    by itself, in the same step (`AutoresetMode.SAME_STEP`) or when it is told (`DISABLED`). Here
    they start at once in both, and are shown when they are asked for. One that starts them in the
    next step (`NEXT_STEP`) would have to be stepped in between, and is refused.

    Args:
        env: the vector environment.
        name: its name, for errors.

    Raises:
        ValueError: the environment starts new episodes in the next step, or does not return what
            gymnasium asks for.
        RuntimeError: it raises, or a row is reset in the middle of an episode, and it cannot do
            that.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], name: str) -> None:
        self._env, self._name = env, name
        self.num_envs = env.num_envs
        self.action_space = env.single_action_space
        self.observation_space = env.single_observation_space
        self.endless = _is_endless(env)
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.NEXT_STEP:
            env.close()
            raise ValueError(
                f"the vector environment of {name} starts new episodes one step late "
                "(AutoresetMode.NEXT_STEP), where others may not be stepped: leave vectorized out"
            )
        self._by_itself = mode == AutoresetMode.SAME_STEP
        self._has_run = False
        # the starts of new episodes that have not been asked for
        self._started: dict[int, Row] = {}

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> Iterable[Row]:
        """Start episodes; the environment is seeded with the first seed, and seeds its rows."""
        if all(row in self._started for row in rows) and set(seeds) == {None}:
            return [self._started.pop(row) for row in rows]
        if len(rows) == self.num_envs or not self._has_run:
            self._keep(range(self.num_envs), *self._call("reset", seed=seeds[0]))
        elif self._by_itself:
            raise RuntimeError(
                f"the vector environment of {self._name} resets its rows when their episodes end "
                f"only, and rows {list(rows)} are to be reset: leave vectorized out"
            )
        else:
            self._restart(rows)
        return [self._started.pop(row) for row in rows]

    def step(self, rows: Sequence[int], actions: np.ndarray) -> Iterable[Row]:
        """Step all rows; those that were not to be stepped are not shown."""
        observations, *given, info = self._call("step", actions)
        rewards, terminated, truncated = (np.array(numbers) for numbers in given)
        self._has_run = True
        # episodes that nobody asked for have gone on
        self._started.clear()
        ended = np.flatnonzero(terminated | truncated).tolist()
        last, last_info = observations, info
        if ended and self._by_itself:
            last, last_info = info["final_obs"], info.get("final_info", {})
            self._keep(ended, observations, info)
        elif ended:
            # the environment may write the first observations into the same arrays
            last = observations = copy.deepcopy(observations)
            self._restart(ended)
        for row in rows:
            seen, told = (last, last_info) if row in ended else (observations, info)
            seen, mask = _part(self.observation_space, seen, row), _mask(told, row)
            yield Row(seen, mask, rewards[row], terminated[row], truncated[row])

    def render(self, row: int) -> Any:
        """None: a vector environment draws all rows at once, if it draws."""
        return None

    def close(self) -> None:
        """Close it."""
        self._env.close()

    def _restart(self, rows: Sequence[int]) -> None:
        mask = np.zeros(self.num_envs, np.bool_)
        mask[list(rows)] = True
        self._keep(rows, *self._call("reset", options={"reset_mask": mask}))

    def _call(self, method: str, *given: Any, **options: Any) -> Any:
        what = f"the vector environment of {self._name}: a {method}"
        try:
            returned = getattr(self._env, method)(*given, **options)
        except Exception as error:
            raise _named(what, error) from error
        return _parts(returned, _STEPS if method == "step" else _STARTS, what)

    def _keep(self, rows: Iterable[int], observations: Any, info: dict[str, Any]) -> None:
        """Keep the starts of new episodes."""
        for row in rows:
            seen = copy.deepcopy(_part(self.observation_space, observations, row))
            self._started[row] = Row(seen, _mask(info, row))


def _named(what: str, error: Exception) -> RuntimeError:
    said = " ".join(str(error).split())
    return RuntimeError(f"{what} raised {type(error).__name__}: {said}")


def _parts(given: Any, names: tuple[str, ...], what: str) -> Any:
    """What a reset or a step has returned, if these are as many values, and `info` a dictionary."""
    found = type(given).__name__
    if isinstance(given, tuple | list):
        if len(given) == len(names) and isinstance(given[-1], Mapping):
            return given
        found = f"({', '.join(type(value).__name__ for value in given)})"
    raise ValueError(f"{what} returned {found}, and not ({', '.join(names)}), info a dict")


def _is_endless(env: Any) -> bool:
    return env.spec is None or env.spec.max_episode_steps is None


def _part(space: Any, batch: Any, row: int) -> Any:
    """What belongs to a row in a batch of elements of a space, or in an array of elements."""
    if isinstance(batch, np.ndarray):
        return batch[row]
    if isinstance(space, spaces.Dict):
        return {key: _part(part, batch[key], row) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_part(x, y, row) for x, y in zip(space.spaces, batch, strict=True))
    return batch[row]


def _mask(info: dict[str, Any], row: int) -> Any:
    # where some rows have none, gymnasium says which have one
    given = ACTION_MASK in info and info.get(f"_{ACTION_MASK}", np.ones(row + 1, np.bool_))[row]
    return copy.deepcopy(info[ACTION_MASK][row]) if given else None
