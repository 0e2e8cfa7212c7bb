"""Every loss with a memory is exact, or says what to do; see the table in `_loss_table.py`."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchrl.modules import OneHotCategorical, TanhNormal, set_recurrent_mode

from tests.modules._helpers import DTYPE, WalkEnv, collect, join
from tests.modules._loss_table import CASES, Case
from tests.modules._losses import NUM_ACTIONS, Parts
from torchrl_shm import unroll

NUM_STEPS = 14
NETWORKS = ("actor_network", "critic_network", "value_network", "qvalue_network")
ACTOR_TERMS = ("loss_actor", "loss_objective", "loss_entropy", "loss_actor_bc", "loss_bc")
# what a loss averages over the batch depends on all steps
MIXED = {"TD3BCLoss": ("loss_actor",), "CQLLoss": ("loss_cql",)}


@cache
def collected(where: str, state: str, discrete: bool, **options: Any) -> tuple[Parts, Any, Any]:
    """What has collected, a batch, and the one after it, which starts in mid-episode."""
    torch.manual_seed(0)
    parts = Parts(where, state, **options)
    actor = parts.actor(OneHotCategorical if discrete else TanhNormal)
    policy = join(parts.memories["critic"], *actor) if "critic" in parts.memories else actor
    env = WalkEnv(num_actions=NUM_ACTIONS if discrete else None)
    return parts, *collect(policy, env, num_steps=NUM_STEPS, num_batches=2)


def run(module: Any, data: Any) -> dict[Any, Tensor]:
    """What a loss or an estimator gives for each step, `[..., B, T]`."""
    with torch.random.fork_rng(), set_recurrent_mode(True):
        torch.manual_seed(1)
        result = module(data.copy())
    keys = [key for key in result.keys(True, True) if key not in data.keys(True, True)]
    if hasattr(module, "advantage_key"):
        keys = ["advantage", "value_target", "state_value", ("next", "state_value")]
    values = {key: result.get(key) for key in keys}
    return {
        key: value.reshape(-1, *data.shape)
        for key, value in values.items()
        if isinstance(value, Tensor) and value.numel() and value.numel() % data.numel() == 0
    }


def perturb(batch: Any) -> tuple[Any, Tensor]:
    """Other observations before the last reset of each sequence, and the steps after it."""
    other = batch.clone()
    time = torch.arange(batch.shape[-1])
    is_init = batch["is_init"].squeeze(-1)
    after = time >= (is_init * time).amax(-1, keepdim=True)
    # one sequence keeps all of its observations
    after[..., 0, :] = True
    for place in ("observation", ("next", "observation")):
        value = torch.randn_like(other[place])
        other[place] = torch.where(after.unsqueeze(-1), other[place], value)
    return other, after


def networks(loss: Any) -> list[tuple[str, list[Any]]]:
    """The networks of a loss or an estimator: all their parameters, and those of their targets."""
    found: list[tuple[str, list[Any]]] = []
    for name in NETWORKS:
        if getattr(loss, f"{name}_params", None) is not None:
            params = [getattr(loss, f"{x}{name}_params").items(True, True) for x in ("", "target_")]
            leaves = [[(k, p) for k, p in each if isinstance(p, Tensor)] for each in params]
            found += [(name, leaves[0]), (f"target_{name}", leaves[1])]
        elif getattr(loss, name, None) is not None:
            named = getattr(loss, name).named_parameters()
            found.append((name, [(tuple(k.split(".")), p) for k, p in named]))
    return found
