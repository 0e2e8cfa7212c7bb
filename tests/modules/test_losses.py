"""Every loss with a memory is exact, or says what to do; see the table in `_losses.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchrl.modules import OneHotCategorical, TanhNormal, set_recurrent_mode

from tests.modules._helpers import WalkEnv, collect, join
from tests.modules._losses import NUM_ACTIONS, Parts

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


def leak(before: dict[Any, Tensor], after: dict[Any, Tensor], same: Tensor) -> float:
    """How much the values of the steps after a reset change."""
    changes = {key: (before[key] - after[key]).abs() for key in before}
    assert all(change[:, ~same].max() > 1e-6 for change in changes.values()), "nothing was changed"
    return max(float(change[:, same].max()) for change in changes.values())


def cell_parameters(loss: Any, name: str) -> dict[str, list[Tensor]]:
    """The parameters of a network's memory, in each network of the loss that has it."""
    found: dict[str, list[Tensor]] = {}
    for network in NETWORKS:
        if (name == "actor") != (network == "actor_network"):
            continue
        params = getattr(loss, f"{network}_params", None)
        if params is None:
            module = getattr(loss, network, None)
            items = [] if module is None else module.named_parameters()
        else:
            items = [
                (".".join(key), p) for key, p in params.items(True, True) if isinstance(key, tuple)
            ]
        for key, parameter in items:
            if ".cell." in key:
                found.setdefault(key.split(".cell.")[-1], []).append(parameter)
    return found


def heads_of(loss: Any) -> list[Tensor]:
    """All other parameters and buffers of the networks, of target networks as well."""
    found: list[Tensor] = []
    for network in NETWORKS:
        params = [getattr(loss, f"{x}{network}_params", None) for x in ("", "target_")]
        if params[0] is None:
            module = getattr(loss, network, None)
            items = [] if module is None else module.named_parameters()
            found += [p for key, p in items if ".cell." not in key]
        else:
            found += [
                p
                for each in params
                if each is not None
                for key, p in each.items(True, True)
                if "cell" not in key
            ]
    return found


def align(heads: Any, loss: Any) -> None:
    """Give heads the parameters of a loss that runs the memories itself."""
    for target, source in zip(heads_of(heads), heads_of(loss), strict=True):
        target.data.copy_(source.data)


def step_by_step(module: Any, cell: Any, first: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Features of the observations of a batch, and of what came next, one step after the other."""

    def step(cell: Any, memory: Tensor, data: Any, place: Any = "observation") -> Any:
        return cell.step(data[place], memory, None)

    def start(memory: Tensor, data: Any) -> Tensor:
        return torch.where(data["is_init"].unsqueeze(-1), 0, memory)

    memory = torch.zeros(len(batch), *cell.memory_shape, dtype=batch["observation"].dtype)
    if module.state != "zero":
        for data in first.unbind(-1):
            _, memory, _ = step(module.cell, start(memory, data), data)
    outputs: list[tuple[Tensor, Tensor]] = []
    for data in batch.unbind(-1):
        y, memory, _ = step(cell, start(memory, data), data)
        outputs.append((y, step(cell, memory, data, ("next", "observation"))[0]))
    root, following = zip(*outputs, strict=True)
    return torch.stack(root, 1).detach(), torch.stack(following, 1).detach()


def gradients(out: dict[Any, Tensor], name: str, parameters: list[Tensor]) -> list[Tensor]:
    terms = [
        v.sum()
        for k, v in out.items()
        if str(k).startswith("loss") and v.requires_grad and (k in ACTOR_TERMS) == (name == "actor")
    ]
    return torch.autograd.grad(sum(terms), parameters, retain_graph=True, materialize_grads=True)
