"""Statistics of observations: what they are, and when they change."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs import VecNormV2
from torchrl.modules import set_recurrent_mode

from tests.training._helpers import MEMORIES
from torchrl_shm import VisualMatchEnv, WindEnv
from torchrl_shm.networks import (
    Encoder,
    Normalized,
    find_normalized,
    get_behavior,
    make_actor_critic,
    make_soft_actor_critic,
)
from torchrl_shm.training import (
    LeanClipPPOLoss,
    RolloutCollector,
    SlowCritic,
    check_ratio,
    evaluate,
    make_sac_loss,
)

WIND = partial(WindEnv, max_steps=7)


def make(shape: tuple[int, ...] = (2,)) -> Normalized:
    shapes = [torch.Size(shape)]
    return Normalized(Encoder(shapes, 4, None), shapes, [0])


def see(network: Normalized, x: torch.Tensor) -> None:
    network.update(network.measure(x))


def statistics(network: Any) -> dict[str, torch.Tensor]:
    buffers = {name: x.clone() for name, x in network.named_buffers()}
    return {name: x for name, x in buffers.items() if name.rpartition(".")[2][:3] in "loc scale"}


def test_they_are_those_of_vec_norm() -> None:
    network, theirs = make(), VecNormV2(["x"], decay=1.0, reduce_batch_dims=True)
    data = torch.randn(20, 8, 5, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([-2.0, 0.5])
    for batch in data:
        see(network, batch)
        theirs._step(TensorDict(), TensorDict({"x": batch}, batch.shape[:-1]))
    loc, scale = (dict(network.named_buffers())[name] for name in ("loc_0", "scale_0"))
    assert_close(loc, theirs.loc["x"], rtol=1e-4, atol=1e-5)
    assert_close(scale, theirs.scale["x"], rtol=1e-4, atol=1e-5)
    flat = data.flatten(0, 2).double()
    assert_close(loc.double(), flat.mean(0), rtol=1e-6, atol=1e-6)
    assert_close(scale.double(), flat.std(0, correction=0), rtol=1e-6, atol=1e-6)


def test_before_the_first_update_nothing_changes() -> None:
    network, x = make(), torch.randn(5, 2)
    assert torch.equal(network(x), network.encoder(x))
    see(network, torch.full((3, 2), torch.nan))
    assert torch.equal(network(x), network.encoder(x))


def test_numbers_that_differ_little_from_each_other() -> None:
    """Of a mean of squares nothing would be left."""
    network = make()
    see(network, torch.tensor([[1e4 - 1, 7.3], [1e4 + 1, 7.3]]))
    see(network, torch.tensor([[1e4 - 1, 7.3], [1e4 + 1, 7.3]]))
    assert_close(network.standardize(0, torch.tensor([1e4 + 1, 7.3])), torch.tensor([1.0, 0.0]))
    # what has never varied is bounded when it does
    assert network.standardize(0, torch.tensor([1e4, 9.0])).tolist() == [0.0, 10.0]


def test_steps_that_are_not_finite_do_not_count() -> None:
    network, clean = make(), make()
    x = torch.randn(4, 3, 2)
    see(clean, x.flatten(0, 1)[1:])
    x[0, 0, 1] = torch.inf
    see(network, x)
    assert all(map(torch.equal, statistics(network).values(), statistics(clean).values()))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    network = make(shape)
    see(network, torch.randn(6, 5, *shape) + 3)
    x = network.standardize(0, torch.randn(200, *shape) + 3)
    assert x.shape == (200, *shape)
    assert x.mean().abs() < 0.5
    assert network(torch.randn(6, 5, *shape)).shape == (6, 5, 4)


def test_only_floats_that_are_no_images() -> None:
    env = VisualMatchEnv(2, image=True, dtype="float32")
    kinds = [
        make_actor_critic(env, MEMORIES["gru"], policy_keys=keys, normalize=True)
        for keys in (["observation"], ["observation", "previous_action"])
    ]
    image, both = (list(find_normalized(kind)) for kind in kinds)
    assert image == []
    ((_, keys),) = both
    assert keys == ["previous_action"]
    clock = make_actor_critic(WIND(2), MEMORIES["gru"], normalize=True, time_size=4)
    ((_, keys),) = find_normalized(clock)
    assert keys == ["observation", "previous_action"]


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        ("shm", {}),
        ("mlp", {}),
        ("gru", {"shared_memory": False}),
        pytest.param("shm", {"backend": "multi_sync"}, marks=pytest.mark.slow),
    ],
)
def test_a_batch_is_trained_on_with_what_collected_it(memory: str, options: Any) -> None:
    backend = options.get("backend", "single")
    network = {key: x for key, x in options.items() if key != "backend"}
    operator = make_actor_critic(
        WIND(4), MEMORIES[memory], policy_keys=["observation"], normalize=True, **network
    )
    policy: Any = operator.get_policy_operator()
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    collector = RolloutCollector(
        WIND, get_behavior(operator), num_envs=4, rollout_length=10, total_frames=120,
        backend=backend,
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    before = statistics(operator)
    for number, batch in enumerate(collector):
        # nothing changes until the policy does
        assert all(map(torch.equal, statistics(operator).values(), before.values()))
        batch["advantage"] = torch.randn(4, 10, 1)
        loss = LeanClipPPOLoss(policy)
        assert check_ratio(loss(batch.select(*loss.in_keys, strict=False))) == pytest.approx(
            1, abs=1e-4
        )
        with torch.no_grad(), set_recurrent_mode(True):
            again = policy.get_dist_params(batch.select(*policy.in_keys, strict=False))
        # the same in worker processes
        assert_close(again["loc"], batch["loc"], atol=1e-5, rtol=0)
        seen.append(batch["observation"].flatten(0, 1).double())
        collector.update_policy()
        before = statistics(operator)
        assert (len(before) == 2) == (not network)
        for name, found in before.items():
            part = torch.cat(seen)
            expected = part.mean(0) if "loc" in name else part.std(0, correction=0)
            assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        assert number < 3
    collector.close()
    evaluate(policy, WIND(4))
    assert all(map(torch.equal, statistics(operator).values(), before.values()))


def test_the_slow_critic_reads_as_the_other_does() -> None:
    operator = make_soft_actor_critic(WIND(2), MEMORIES["shm"], normalize=True)
    slow = SlowCritic(operator, make_sac_loss(operator, gamma=0.9), tau=0.1)
    collector = RolloutCollector(
        WIND, get_behavior(operator), num_envs=2, rollout_length=8, total_frames=16
    )
    assert len(list(find_normalized(get_behavior(operator)))) == 2
    next(iter(collector))
    collector.update_policy()
    collector.close()
    slow.step()
    actor, critic, late = map(statistics, (operator.actor, operator.critic, slow.critic))
    for one, two, three in zip(actor.values(), critic.values(), late.values(), strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, two)
        assert torch.equal(two, three)


def test_they_count_on_in_a_network_of_16_bits() -> None:
    """In bfloat16 a count of 256 and one are 256."""
    network, exact = make().to(torch.bfloat16), make()
    for batch in torch.randn(300, 1, 2) + 5:
        see(network, batch)
        see(exact, batch)
    assert statistics(network).keys() == statistics(exact).keys()
    for name, x in exact.named_buffers():
        assert torch.equal(dict(network.named_buffers())[name], x)
    assert network(torch.randn(4, 2)).dtype == torch.bfloat16
