"""SAC, which runs the critics under vmap, and the memory on the next observations."""

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule as Mod
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate

from tests.modules._helpers import join
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.modules import State


def sac(state: State) -> tuple[Collector, SACLoss]:
    def mix(keys: Any, out: str) -> Mod:
        return Mod(lambda *inputs: torch.cat(inputs, -1), keys, [out])

    memory = SHMModule(4, 16, memory_size=6, in_key="x", out_key="features", state=state)
    head = nn.Sequential(nn.Linear(16, 4), NormalParamExtractor())
    observations = ["observation", "previous_action"]
    actor = ProbabilisticActor(
        join(mix(observations, "x"), memory, Mod(head, ["features"], ["loc", "scale"])),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    keys: dict[str, Any] = {"in_keys": ["xa", "critic_memory"], "out_key": "critic_features"}
    critic = join(
        mix([*observations, "action"], "xa"),
        SHMModule(6, 16, memory_size=6, state=state, **keys),
        Mod(nn.Linear(16, 1), ["critic_features"], ["state_action_value"]),
    )
    options: dict[str, Any] = {"frames_per_batch": 4 * 20, "total_frames": 4 * 40}
    env = WindEnv(4, max_steps=20, seed=0)
    collector = Collector(env, actor, auto_register_policy_transforms=True, **options)
    loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-2.0)
    SoftUpdate(loss, eps=0.99)
    return collector, loss


def test_sac_learns_actor_and_critics_with_memories() -> None:
    collector, loss = sac("zero")
    for batch in collector:
        terms = loss(batch)
        total = terms["loss_actor"] + terms["loss_qvalue"] + terms["loss_alpha"]
        gradients = torch.autograd.grad(total, [p for p in loss.parameters() if p.requires_grad])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert sum(bool(gradient.any()) for gradient in gradients) == len(gradients)


def test_sac_on_lean_sequences_says_what_to_do() -> None:
    collector, loss = sac("lean")
    with pytest.raises(KeyError, match="choose state='zero'"):
        loss(next(iter(collector)))
