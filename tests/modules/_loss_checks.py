"""What a loss gives for each step, and what it has to give."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchrl.modules import OneHotCategorical, TanhNormal, set_recurrent_mode
from torchrl.objectives import DiscreteIQLLoss, IQLLoss

from tests.modules._helpers import DTYPE, WalkEnv, collect, join
from tests.modules._losses import NUM_ACTIONS, Parts

NUM_STEPS = 14
NETWORKS = ("actor_network", "critic_network", "value_network", "qvalue_network")
ACTOR_TERMS = ("loss_actor", "loss_objective", "loss_entropy", "loss_actor_bc", "loss_bc")


@cache
def collected(
    where: str, state: str, discrete: bool, calibration: str = "neural"
) -> tuple[Parts, Any, Any]:
    """What has collected, a batch, and the one after it, which starts in mid-episode."""
    torch.manual_seed(0)
    parts = Parts(where, state, calibration=calibration)
    actor = parts.actor(OneHotCategorical if discrete else TanhNormal)
    policy = join(parts.memories["critic"], *actor) if "critic" in parts.memories else actor
    env = WalkEnv(num_actions=NUM_ACTIONS if discrete else None)
    first, batch = collect(policy, env, num_steps=NUM_STEPS, num_batches=2)
    assert not batch["is_init"][:, 0].all()
    assert batch["next", "terminated"][:, :-1].any()
    assert batch["next", "truncated"][:, :-1].any()
    return parts, first, batch


def build(make: Any, parts: Parts) -> Any:
    """A loss; its target networks are not updated here, of which it would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = make(parts)
    for name in getattr(loss, "_has_update_associated", {}):
        loss._has_update_associated[name] = True
    return loss


def run(module: Any, data: Any) -> dict[Any, Tensor]:
    """What a loss or an estimator gives for each step, `[..., B, T]`."""
    default = torch.get_default_dtype()
    # DistributionalDQNLoss makes its target of the default dtype
    torch.set_default_dtype(DTYPE)
    try:
        with torch.random.fork_rng(), set_recurrent_mode(True):
            torch.manual_seed(1)
            result = module(data.copy())
    finally:
        torch.set_default_dtype(default)
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


def networks(loss: Any) -> list[tuple[str, list[tuple[Any, Tensor]]]]:
    """The networks of a loss or an estimator, and of its targets, with their parameters."""
    found: list[tuple[str, list[tuple[Any, Tensor]]]] = []
    for name in NETWORKS:
        if getattr(loss, f"{name}_params", None) is not None:
            for full_name in (name, f"target_{name}"):
                items = getattr(loss, f"{full_name}_params").items(True, True)
                found.append((full_name, [(k, p) for k, p in items if isinstance(p, Tensor)]))
        elif getattr(loss, name, None) is not None:
            named = getattr(loss, name).named_parameters()
            found.append((name, [(tuple(k.split(".")), p) for k, p in named]))
    return found


def memory_parameters(loss: Any, who: str | None = None) -> list[tuple[str, str, Tensor]]:
    """Network, name and value of all parameters of memories, in the networks of `who`."""
    return [
        (network, ".".join(key[key.index("cell") + 1 :]), parameter)
        for network, parameters in networks(loss)
        for key, parameter in parameters
        if "cell" in key and who in (None, "actor" if "actor" in network else "critic")
    ]


def share_memories(loss: Any, parts: Parts) -> None:
    """Give a loss the memories that collected: it has resampled those of its critics."""
    for network, name, parameter in memory_parameters(loss):
        memory = parts.memory_of("actor" if "actor" in network else "critic")
        # what is expanded is shared already
        if parameter.is_contiguous():
            parameter.data.copy_(memory.cell.get_parameter(name).data)


def share_heads(heads: Any, loss: Any) -> None:
    """Give heads the parameters of a loss that runs the memories itself."""
    mine, theirs = (
        [p for _, parameters in networks(each) for key, p in parameters if "cell" not in key]
        for each in (heads, loss)
    )
    for target, source in zip(mine, theirs, strict=True):
        target.data.copy_(source.data)


def step_by_step(module: Any, first: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Features of the observations of a batch, and of what came next, one step after the other."""
    cell, choice_key = module.cell, module.choice_key

    def step(memory: Tensor, data: Any, place: Any = ()) -> tuple[Tensor, Tensor, Any]:
        choice = None if choice_key is None else data[*place, choice_key]
        return cell.step(data[*place, "observation"], memory, choice)

    memory = torch.zeros(len(batch), *cell.memory_shape, dtype=DTYPE)
    outputs: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        before = [] if module.state == "zero" else first.unbind(-1)
        for number, data in enumerate([*before, *batch.unbind(-1)]):
            memory = torch.where(data["is_init"].unsqueeze(-1), 0, memory)
            y, memory, _ = step(memory, data)
            if number >= len(before):
                outputs.append((y, step(memory, data, ("next",))[0]))
    root, following = zip(*outputs, strict=True)
    return torch.stack(root, 1), torch.stack(following, 1)


def with_features(parts: Parts, first: Any, batch: Any) -> Any:
    """A batch with the features of all memories, computed step by step."""
    result = batch.copy()
    for memory in parts.memories.values():
        root, following = step_by_step(memory, first, batch)
        result[memory.out_keys[0]] = root
        result["next", memory.out_keys[0]] = following
    return result


def gradients(loss: Any, terms: dict[Any, Tensor], who: str, parameters: list[Tensor]) -> Any:
    """Of the actor's or of the critic's terms of a loss, none where it has no such terms."""
    chosen = [
        value.sum()
        for key, value in terms.items()
        if str(key).startswith("loss") and (key in ACTOR_TERMS) == (who == "actor")
    ]
    if isinstance(loss, IQLLoss) and not isinstance(loss, DiscreteIQLLoss) and who == "critic":
        # the target of its other term is not detached from what the networks read
        chosen = [terms["loss_qvalue"].sum()]
    total: Any = sum(value for value in chosen if value.requires_grad)
    if not parameters or not isinstance(total, Tensor):
        return ()
    options: Any = {"retain_graph": True, "materialize_grads": True}
    return torch.autograd.grad(total, parameters, **options)
