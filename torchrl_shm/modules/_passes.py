"""What a pass over sequences runs on: observations that were acted on, or those that came next.

Losses run a network over the observations that were acted on (the root of the data) and many of
them once more over those that came next (`"next"`). The second run lacks what a memory has to know:
the reset flags there are false everywhere, the first observation of each episode is absent, and the
random choices are those of the step before. So the data say which of the two they are,
in the entry `<memory>_role` that `MemoryModule` writes in step mode, and lean rollouts also by the
sign of the clock in `<memory>_lean_index`. Data without a mark are trusted where every sequence
starts with a reset: next observations never do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.ops.shm.dispatch import is_transformed

ACTED, NEXT, NEXT_OF_FIRST = 1, 2, 3
"""Roles of an observation: acted on, came next, came next after the first step of an episode."""

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
        torch._assert_async(~bad.any(), message.replace("{bad} of {all}", "some"))
    elif bool(flags.any()):
        raise error(
            message.replace("{bad}", str(int(flags.sum()))).replace("{all}", str(flags.numel()))
        )


def refuse_next(is_next: Tensor, name: object, state: str) -> None:
    """Refuse sequences of next observations.

    Args:
        is_next: bool `[B]`.
        name: key of the memory, for the message.
        state: of the module, for the message.
    """
    refuse(
        is_next,
        f"the memory {name!r} was run over next observations, which lack the first observation of "
        f"every episode (state={state!r}): {ADVICE}",
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
        f"do not tell (state={state!r} reads {missing}): collect with the module in the policy and "
        "auto_register_policy_transforms=True. If these are next observations, or a loss dropped "
        f"the keys: {ADVICE}",
        KeyError,
    )
