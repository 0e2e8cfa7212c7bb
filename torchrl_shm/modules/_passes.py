"""What a pass over sequences runs on: observations that were acted on, or those that came next.

Losses run a network over the observations that were acted on (the root of the data) and many of
them once more over those that came next (`"next"`). The second run lacks what a memory has to know:
the reset flags there are false everywhere, the first observation of each episode is absent, and the
random choices are those of the step before. Others drop, repeat or join steps. So the data say what
they are, in the entry `<memory>_role` that `MemoryModule` writes in step mode: `n` for the
observation on which the `n`-th step of an episode acted, `-n` for the one that came next, 0 where
nobody knows. Lean rollouts also say it by the sign of the clock in `<memory>_lean_index`. Data
without a mark are trusted where their user runs the module, and in losses and estimators only
where every sequence starts with a reset, as next observations do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.ops.shm.dispatch import is_transformed

ADVICE = (
    "run torchrl_shm.unroll(module, rollouts) before the loss and give the loss the heads alone, "
    "or use shifted=True in a value estimator"
)


def concrete(x: Tensor) -> Tensor | None:
    """The values of a tensor, also under `torch.func` transforms; `None` while compiling."""
    if torch.compiler.is_compiling():
        return None
    functorch: Any = torch._C._functorch  # pyright: ignore
    while is_transformed(x):
        x = functorch.get_unwrapped(x)
    return x


def refuse(bad: Tensor, message: str, error: Callable[[str], Exception] = ValueError) -> None:
    """Raise where a flag is set, also under `torch.vmap` and `torch.compile`.

    Args:
        bad: bool of any shape, one flag per sequence.
        message: may hold `{bad}` and `{all}`, the numbers of sequences.
        error: type of the error; compiled code raises `RuntimeError`.
    """
    flags = concrete(bad)
    if flags is None:
        # compiled code cannot branch on values; it raises when it runs
        assert_async: Any = torch._assert_async  # pyright: ignore
        assert_async(~bad.any(), message.replace("{bad} of {all}", "some"))
    elif bool(flags.any()):
        raise error(
            message.replace("{bad}", str(int(flags.sum()))).replace("{all}", str(flags.numel()))
        )


def roles_of(before: Tensor | None, is_init: Tensor) -> Tensor:
    """The role of an observation on which a step acts.

    Args:
        before: role that the step before has handed on, or that was recorded for this one.
        is_init: bool, of the same shape.

    Returns:
        int64 of shape `is_init`.
    """
    if before is None:
        return torch.ones_like(is_init, dtype=torch.int64)
    before = before.reshape(is_init.shape)
    # recorded data that are run again, one step each, keep theirs
    return torch.maximum(before, 1 - before).masked_fill(is_init, 1)


def refuse_broken(role: Tensor, came_next: Tensor, is_init: Tensor, name: object) -> None:
    """Refuse what is not the steps of a sequence in their order.

    Args:
        role: int64 `[B, T]`.
        came_next: bool `[B, T]`.
        is_init: bool `[B, T]`.
        name: key of the memory, for the message.
    """
    step, before, after = role.abs(), slice(None, -1), slice(1, None)
    known = (step[:, before] > 0) & (step[:, after] > 0)
    known = known & (came_next[:, before] == came_next[:, after])
    follows = (step[:, after] - step[:, before] == 1) | (step[:, after] == 1) | is_init[:, after]
    # an estimator inserts single next observations
    in_pass = came_next[:, before] & came_next[:, after]
    mixed = torch.where(came_next[:, :1], role[:, after] > 0, in_pass)
    refuse(
        ((known & ~follows) | mixed).any(1),
        f"{{bad}} of {{all}} sequences of the memory {name!r} lack steps, or hold them twice or "
        "out of order: recurrent mode reads [..., T] as collected, no single steps. If a loss made "
        "them so, run torchrl_shm.unroll(module, rollouts) before it",
    )


def refuse_next(is_next: Tensor, name: object, state: str, *, flat: bool) -> None:
    """Refuse sequences of next observations, unless their memories are stored.

    Args:
        is_next: bool `[B]`.
        name: key of the memory, for the message.
        state: of the module.
        flat: whether the data have no dimension but time. What a loss selects with a mask is flat
            and lacks steps, and with them the choices that acted.
    """
    if state == "stored" and not flat:
        return
    lacks = "lack the first of every episode"
    if state == "stored":
        lacks = "may lack steps, being flat (whole ones: data.unsqueeze(0); no single steps)"
    refuse(
        is_next,
        f"the memory {name!r} was run over next observations, which {lacks} "
        f"(state={state!r}): {ADVICE}",
    )


def refuse_unknown_start(unknown: Tensor, name: object, state: str, missing: list[Any]) -> None:
    """Refuse sequences that start in mid-episode from a memory that nobody knows.

    Args:
        unknown: bool `[B]`.
        name: key of the memory, for the message.
        state: of the module, for the message.
        missing: keys by which the start would be known.
    """
    refuse(
        unknown,
        f"{{bad}} of {{all}} sequences start in mid-episode, from a memory {name!r} that the data "
        f"do not tell (state={state!r} reads {missing}). Collect with the module in the policy and "
        "auto_register_policy_transforms=True; in data made by hand the role is n at the n-th step "
        "of an episode. If a loss dropped the keys, run torchrl_shm.unroll(module, rollouts) first",
        KeyError,
    )
