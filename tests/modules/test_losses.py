"""Every loss with a memory is exact, or says what to do; see the table in `_losses.py`."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchrl.modules import OneHotCategorical, TanhNormal, set_recurrent_mode

from tests.modules._helpers import WalkEnv, collect, join
from tests.modules._losses import CASES, NUM_ACTIONS, Case, Parts
from torchrl_shm import unroll

NUM_STEPS = 14
NETWORKS = ("actor_network", "critic_network", "value_network", "qvalue_network")
ACTOR_TERMS = ("loss_actor", "loss_objective", "loss_entropy", "loss_actor_bc", "loss_bc")
# what a loss averages over the batch depends on all steps
MIXED = {"TD3BCLoss": ("loss_actor",), "CQLLoss": ("loss_cql",)}


@cache
def collected(where: str, state: str, discrete: bool) -> tuple[Parts, list[Any]]:
    """The networks that collected, and two batches, the second of which starts in mid-episode."""
    torch.manual_seed(0)
    parts = Parts(where, state, calibration="neural")
    actor = parts.actor(OneHotCategorical if discrete else TanhNormal)
    critic = [memory for name, memory in parts.memories.items() if name == "critic"]
    env = WalkEnv(num_actions=NUM_ACTIONS if discrete else None)
    policy = join(*critic, *actor) if critic else actor
    return parts, collect(policy, env, num_steps=NUM_STEPS, num_batches=2)


def run(module: Any, data: Any) -> dict[Any, Tensor]:
    """What a loss or an estimator gives for each step, `[..., B, T]`."""
    with torch.random.fork_rng(), set_recurrent_mode(True):
        torch.manual_seed(1)
        result = module(data.copy())
    keys = [key for key in result.keys(True, True) if key not in data.keys(True, True)]
    if hasattr(module, "value_estimate"):
        keys = ["advantage", "value_target", "state_value", ("next", "state_value")]
    values = {key: result.get(key) for key in keys}
    size = data.numel()
    return {
        key: value.reshape(-1, *data.shape)
        for key, value in values.items()
        if isinstance(value, Tensor) and value.numel() and value.numel() % size == 0
    }
