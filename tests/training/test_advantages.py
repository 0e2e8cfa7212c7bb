"""Advantages of another lambda are those that TorchRL computes with it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from torchrl_shm import SHMModule
from torchrl_shm.envs import KeyToDoorEnv, WindEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import RolloutCollector, change_lmbda


@pytest.mark.parametrize(("old", "new"), [(1.0, 0.9), (0.9, 1.0), (0.95, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_as_with_an_estimator_of_that_lambda(name: str, old: float, new: float) -> None:
    torch.manual_seed(0)
    env: Any = {
        "terminated": partial(KeyToDoorEnv, frames=(10, 20, 3)),
        "truncated": partial(WindEnv, max_steps=33),
    }[name]
    operator = make_actor_critic(env(4), SHMModule, embedding_size=8)
    # sequences have the end of an episode inside, and are cut in the next one
    collector = RolloutCollector(
        env, get_behavior(operator), num_envs=4, rollout_length=50, total_frames=1
    )
    batch = next(iter(collector))
    collector.close()
    assert batch["next", name].any()
    assert not batch["next", "done"][:, -1].any()
    gamma, found = 0.99, []
    for lmbda in (old, new):
        gae = GAE(
            gamma=gamma, lmbda=lmbda, value_network=operator.get_value_operator(), shifted=True
        )
        gae.shifted_budget = 3
        with torch.no_grad(), set_recurrent_mode(True):
            found.append(gae(batch.clone())["advantage"])
    changed = change_lmbda(found[0], batch["next", "done"], gamma=gamma, lmbda=old, new_lmbda=new)
    torch.testing.assert_close(changed, found[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_the_same_lambda_keeps_the_bits() -> None:
    advantage, done = torch.randn(2, 5, 1), torch.zeros(2, 5, 1, dtype=torch.bool)
    assert change_lmbda(advantage, done, gamma=0.9, lmbda=0.8, new_lmbda=0.8) is advantage


def test_credit_of_a_value_that_rises() -> None:
    # a key that raises the value by 10 at step 3, and apples by luck in the 500 steps after it
    luck = torch.randn(1024, 500, 1, generator=torch.Generator().manual_seed(0))
    luck[:, 3] = 10.0
    done = torch.zeros_like(luck, dtype=torch.bool)
    done[:, -1] = True
    everything = change_lmbda(luck, done, gamma=1.0, lmbda=0.0, new_lmbda=1.0)
    near = change_lmbda(everything, done, gamma=1.0, lmbda=1.0, new_lmbda=0.9)
    # both say ten on average, one of them with a tenth of the noise
    assert everything[:, 3].mean() == pytest.approx(10, abs=2)
    assert near[:, 3].mean() == pytest.approx(10, abs=0.3)
    assert everything[:, 3].std() > 8 * near[:, 3].std()
