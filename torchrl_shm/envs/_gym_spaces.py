"""Spaces of gymnasium as specs: what a policy reads and does, and how it passes to and fro.

All is said of one environment; actions are made for a batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    TensorSpec,
    Unbounded,
)

from torchrl_shm.checks import ACTION_MASK

# numbers of this size are how environments say that there is no bound
_UNBOUNDED = 1e15


class Action(NamedTuple):
    """An action space.

    Attributes:
        spec: spec of what a policy does.
        to_env: makes elements of the space of what a policy does in B environments, `[B, ...]`.
        choices: number of choices of each index; empty where an action is not of indices.
    """

    spec: TensorSpec
    to_env: Callable[[np.ndarray], np.ndarray]
    choices: tuple[int, ...] = ()


class Observation(NamedTuple):
    """An observation space.

    Attributes:
        spec: spec of what a policy reads, a `Composite` where the space is made of parts.
        read: makes it of an element of the space: an array of its own, or a dictionary by part.
    """

    spec: TensorSpec
    read: Callable[[Any], Any]


def action_of(space: Any, name: str) -> Action:
    """Look an action space up in the table below.

    | space | spec | what is sent |
    |---|---|---|
    | `Box` | `Bounded`, -1 to 1, if all bounds are finite, or `Unbounded` | see `_box_action` |
    | `Discrete` | `Categorical` | the index, counted from the start of the space |
    | `MultiDiscrete` | `MultiCategorical`, in one row | the indices, from their starts |
    | `MultiBinary` | `Binary` | the bits |

    Args:
        space: the space.
        name: name of the environment, for errors.

    Returns:
        Its spec, and the way back.

    Raises:
        ValueError: the space is of another kind, or empty.
    """
    # in order: what stands first is tried first
    table: dict[type, Callable[[Any], Action]] = {
        spaces.Box: _box_action,
        spaces.Discrete: _index_action,
        spaces.MultiDiscrete: _indices_action,
        spaces.MultiBinary: _bits_action,
    }
    make = next((make for kind, make in table.items() if isinstance(space, kind)), None)
    if make is None:
        raise ValueError(
            f"actions of {name} are {_short(space)}, which no policy makes: wrap it so that they "
            "are a Box, Discrete, MultiDiscrete or MultiBinary, as gymnasium.ActionWrapper does"
        )
    if 0 in (space.shape or ()):
        raise ValueError(f"actions of {name} are {_short(space)}, which has no element to choose")
    return make(space)


def _box_action(space: Any) -> Action:
    """Numbers around 0 as numbers around the middle of the space, clipped into its bounds.

    Between two bounds, -1 is the lower and 1 the upper one. Beside a single one, and where there is
    none, numbers are taken as they are; but where 0 is not at least 1 inside of the bound they are
    counted from there. Whole numbers are rounded.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    above, below = low > -_UNBOUNDED, high < _UNBOUNDED
    both = above & below
    # what stands in for a bound that there is not is in no result
    lowest, highest = np.where(above, low, -1.0), np.where(below, high, 1.0)
    near = np.where(
        above, np.maximum(lowest + 1, 0), np.where(below, np.minimum(highest - 1, 0), 0)
    )
    middle = np.where(both, (lowest + highest) / 2, near)
    unit = np.where(both, (highest - lowest) / 2, 1.0)
    shape = torch.Size(space.shape or (1,))
    whole = not np.issubdtype(space.dtype, np.floating)
    largest = high
    if whole and space.dtype.itemsize == 8:
        # the largest whole number has no float of its own, and rounds to one that is beyond it
        largest = np.minimum(high, np.nextafter(float(np.iinfo(space.dtype).max), 0))

    def to_env(action: np.ndarray) -> np.ndarray:
        numbers = action.reshape(-1, *space.shape).astype(np.float64) * unit + middle
        numbers = np.clip(np.rint(numbers) if whole else numbers, low, largest)
        return numbers.astype(space.dtype)

    if both.all():
        return Action(Bounded(-1.0, 1.0, shape=shape, dtype=torch.float32), to_env)
    return Action(Unbounded(shape, dtype=torch.float32), to_env)


def _index_action(space: Any) -> Action:
    size, start = int(space.n), int(space.start)
    spec = Categorical(size, shape=torch.Size(()), dtype=torch.int64)
    return Action(spec, lambda action: action + start, (size,))


def _indices_action(space: Any) -> Action:
    sizes = torch.as_tensor(space.nvec.ravel().astype(np.int64))

    def to_env(action: np.ndarray) -> np.ndarray:
        return (action.reshape(-1, *space.shape) + space.start).astype(space.dtype)

    return Action(MultiCategorical(sizes, dtype=torch.int64), to_env, tuple(sizes.tolist()))


def _bits_action(space: Any) -> Action:
    spec = Binary(shape=torch.Size(space.shape), dtype=torch.int8)
    return Action(spec, lambda action: action.astype(space.dtype))


def observation_of(space: Any, name: str) -> Observation:
    """Look an observation space up, with all its parts.

    | space | what a policy reads |
    |---|---|
    | `Box` of bytes up to 255 | the bytes |
    | `Box` of smaller bytes | float32 of the same shape, divided by the largest `high` |
    | other `Box`, `MultiBinary` | float32 of the same shape |
    | `Discrete`, `MultiDiscrete` | float32, one-hot, one block after the other |
    | `Dict`, `Tuple` | entry by entry, those of a tuple by their number |

    Args:
        space: the space.
        name: name of the environment and of the part, for errors.

    Returns:
        Its spec, and how it is read.

    Raises:
        ValueError: the space, or a part of it, is of another kind or has no fixed size.
    """
    match space:
        case spaces.Box(dtype=np.uint8):
            return _bytes(space, name)
        case spaces.Box() | spaces.MultiBinary():
            return _numbers(space, np.float32, name)
        case spaces.Discrete():
            return _one_hot(np.array([space.n]), np.array([space.start]), name)
        case spaces.MultiDiscrete():
            return _one_hot(space.nvec.ravel(), space.start.ravel(), name)
        case spaces.Dict():
            return _parts(dict(space.spaces), name)
        case spaces.Tuple():
            return _parts(dict(enumerate(space.spaces)), name)
        case _:
            raise ValueError(
                f"observations of {name} are of no fixed size: {_short(space)}; wrap it so that "
                "they are arrays, as gymnasium.ObservationWrapper does"
            )


def _bytes(space: Any, name: str) -> Observation:
    highest = int(space.high.max(initial=0))
    if highest == 255:
        return _numbers(space, np.uint8, name)
    # networks take bytes for parts of 255
    spec, read = _numbers(space, np.uint8, name)
    spec = Unbounded(spec.shape, dtype=torch.float32)
    return Observation(spec, lambda x: read(x) / np.float32(max(highest, 1)))


def _numbers(space: Any, dtype: Any, name: str) -> Observation:
    kind = torch.uint8 if dtype == np.uint8 else torch.float32
    shape = torch.Size(space.shape or (1,))

    def read(x: Any) -> np.ndarray:
        same = isinstance(x, np.ndarray) and x.dtype == dtype
        # a copy: environments may go on with the array that they gave
        numbers = np.array(x) if same else _convert(x, dtype, name)
        if numbers.shape != space.shape:
            raise ValueError(
                f"{name} emits an observation of shape {numbers.shape}, and its space says "
                f"{space.shape}; fix the environment"
            )
        return numbers.reshape(shape)

    return Observation(Unbounded(shape, dtype=kind), read)


def _convert(x: Any, dtype: Any, name: str) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            numbers = np.array(x, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{name} emits {_short(repr(x))}, which is no {np.dtype(dtype)}; fix the environment"
        ) from error
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{name} emits a number beyond float32, {np.abs(x).max():g}; scale it in a "
            "gymnasium.ObservationWrapper"
        ) from error
    if dtype == np.uint8 and (numbers != np.asarray(x)).any():
        raise ValueError(
            f"{name} emits {_short(repr(np.asarray(x)))}, which are no bytes as its space says; "
            "fix the environment: numbers from 0 to 1 need a Box of float32"
        )
    return numbers


def _one_hot(sizes: Any, starts: Any, name: str) -> Observation:
    sizes, starts = sizes.astype(np.int64), starts.astype(np.int64)
    offsets, total = sizes.cumsum() - sizes, int(sizes.sum())

    def read(x: Any) -> np.ndarray:
        indices = np.asarray(x, np.int64).ravel() - starts
        if ((indices < 0) | (indices >= sizes)).any():
            raise ValueError(f"{name} emits {x}, which is not in its space; fix the environment")
        numbers = np.zeros(total, np.float32)
        numbers[offsets + indices] = 1
        return numbers

    return Observation(Unbounded(torch.Size((total,)), dtype=torch.float32), read)


def _parts(children: dict[Any, Any], name: str) -> Observation:
    if not children:
        raise ValueError(f"observations of {name} are empty; wrap it so that there are some")
    parts = {key: observation_of(x, f"{name}, entry {key!r},") for key, x in children.items()}
    specs: Any = {str(key): part.spec for key, part in parts.items()}

    def read(x: Any) -> dict[str, Any]:
        return {str(key): part.read(x[key]) for key, part in parts.items()}

    return Observation(Composite(specs), read)


def stack(read: list[Any]) -> Any:
    """Stack what was read of B environments: a tensor, or a TensorDict by part, of shape [B]."""
    if isinstance(read[0], dict):
        return TensorDict({key: stack([x[key] for x in read]) for key in read[0]}, [len(read)])
    return torch.from_numpy(np.stack(read))


def mask_of(choices: Sequence[int]) -> Observation:
    """The flags of an action mask.

    Args:
        choices: number of choices of each index.

    Returns:
        Spec of bool flags, and how they are read of an array, or of a tuple of arrays. Where
        nothing is allowed of an index, as behind the end of an episode, everything is.
    """
    count, starts = sum(choices), np.cumsum(choices)[:-1]

    def read(mask: Any) -> np.ndarray:
        parts = mask if isinstance(mask, (tuple, list)) else [mask]
        flags = np.concatenate([np.ravel(part) for part in parts]).astype(bool)
        if flags.size != count:
            raise ValueError(
                f"{ACTION_MASK!r} has {flags.size} flags, and there are {count} choices; it "
                "needs one per choice, of several indices one block after the other"
            )
        return np.concatenate([x if x.any() else ~x for x in np.split(flags, starts)])

    return Observation(Binary(shape=torch.Size((count,)), dtype=torch.bool), read)


def is_mask(space: Any, choices: int) -> bool:
    """Whether an entry of an observation can be an action mask: as many flags as choices."""
    parts = list(space.spaces) if isinstance(space, spaces.Tuple) else [space]
    sizes = [int(np.prod(part.shape or ())) for part in parts if _are_flags(part)]
    return len(sizes) == len(parts) and choices == sum(sizes)


def _are_flags(space: Any) -> bool:
    return isinstance(space, spaces.MultiBinary) or (
        isinstance(space, spaces.Box)
        and not np.issubdtype(space.dtype, np.floating)
        and bool((space.low == 0).all() and (space.high == 1).all())
    )


def _short(what: Any) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
