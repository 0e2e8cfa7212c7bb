"""Checks of options for the whole package; each message names the value and the choices."""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

import torch

ACTION_MASK = "action_mask"
"""Entry of an observation that says which choices are allowed: policies never make others."""

WRITTEN_KEYS = (
    "embedding", "features", "critic_embedding", "critic_features", "loc", "scale", "logits",
    "action", "action_log_prob", "state_value",
)  # fmt: skip
"""Entries that networks write; an observation of such a name would be overwritten."""

TAKEN_KEYS = {
    *WRITTEN_KEYS,
    # TorchRL
    "reward", "done", "terminated", "truncated", "next", "is_init", "collector", "index",
    "step_count", "episode_reward",
    # losses
    "advantage", "value_target", "state_action_value", "td_error",
    # tasks of this package, and the clock
    "shaping", "success", "time", "episode_step",
    # memories
    "memory", "theta_index", "memory_role", "critic_memory", "critic_theta_index",
    "critic_memory_role",
}  # fmt: skip
"""Names of entries that have a meaning; an observation of another package must have others."""


def check_option(name: str, value: object, literal: Any) -> None:
    """Raise ValueError unless a value is one of a `Literal`."""
    options = get_args(literal)
    if value not in options:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {options}")


def check_count(name: str, value: float, smallest: int = 1) -> None:
    """Raise ValueError unless an argument is a whole number of at least `smallest`."""
    # python counts True as 1
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_device(name: str, value: str) -> None:
    """Raise ValueError for a device that torch does not know, or that this machine lacks."""
    try:
        device = torch.device(value)
    except RuntimeError:
        raise ValueError(f"{name}={value!r} is unknown; use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}={value!r}: torch finds no CUDA device; use cpu")
