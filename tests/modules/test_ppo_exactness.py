"""Nothing was learned from a batch when PPO first looks at it, so its ratio is 1 exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tests.modules._helpers import (
    DTYPE,
    EXACT,
    WalkEnv,
    estimate,
    join,
    make_actor,
    make_critic,
    make_memory,
    make_shared,
)
from torchrl_shm.envs import WindEnv
from torchrl_shm.modules import SHMModule


class Agent(NamedTuple):
    policy: Any  # what collects, values included
    critic: Any  # what estimates
    loss: ClipPPOLoss


def shared(memory: Any = None, dtype: torch.dtype = DTYPE) -> Agent:
    """One memory; only the value head is in the loss, since the policy runs the memory."""
    operator = make_shared(memory, dtype)
    loss = ClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
    return Agent(operator, operator.get_value_operator(), loss)


def separate(dtype: torch.dtype = DTYPE, **options: Any) -> Agent:
    """A memory for the actor and one for the critic, of different sizes."""
    first, second = (
        make_memory(
            size,
            in_keys=["observation", f"{name}_memory"],
            out_key=f"{name}_features",
            dtype=dtype,
            **options,
        )
        for name, size in (("a", 4), ("v", 5))
    )
    actor = make_actor("a_features", dtype, memory=first)
    critic = join(second, make_critic("v_features", dtype))
    return Agent(join(critic, actor), critic, ClipPPOLoss(actor, critic))


def ratio_error(agent: Agent, batch: Any) -> float:
    with torch.no_grad(), set_recurrent_mode(True):
        distribution = agent.loss.actor_network.get_dist(batch.copy())
    log_ratio = distribution.log_prob(batch["action"]) - batch["action_log_prob"]
    return float((log_ratio.exp() - 1).abs().max())


def train(
    agent: Agent,
    env: EnvBase,
    check: Callable[[Any, Any], None],
    *,
    num_steps: int = 10,
    learning_rate: float = 0.3,
) -> None:
    """A few batches of PPO; `check` sees each as collected, and with advantages, before updates."""
    frames = env.batch_size.numel() * num_steps
    collector = Collector(
        env,
        agent.policy,
        frames_per_batch=frames,
        total_frames=4 * frames,
        auto_register_policy_transforms=True,
    )
    optimizer = torch.optim.SGD(agent.loss.parameters(), learning_rate)
    mid_episode = 0
    batch: Any = ()
    for collected in collector:
        mid_episode += int((~collected["is_init"][:, 0]).sum())
        batch = estimate(collected, agent.critic)
        assert batch["shifted_valid"].all()
        check(collected, batch)
        for index in torch.randperm(len(batch)).split(2):
            term = agent.loss(batch[index])
            total = sum(term[key] for key in term.keys() if key.startswith("loss_"))
            assert isinstance(total, Tensor)
            optimizer.zero_grad()
            total.backward()
            assert all(p.grad is not None for p in agent.loss.parameters())
            optimizer.step()
    collector.shutdown()
    # sequences have to start in mid-episode, or nothing was tested
    assert mid_episode >= len(batch)


@pytest.mark.parametrize("make", [shared, separate])
def test_ratio_and_values_in_double_precision(make: Callable[[], Agent]) -> None:
    agent = make()
    first: list[Any] = []

    def check(collected: Any, batch: Any) -> None:
        first.append(batch)
        assert ratio_error(agent, batch) <= 1e-8
        with torch.no_grad():
            term = agent.loss(batch[torch.randperm(3)[:2]])
        assert abs(float(term["max_ratio"]) - 1) <= 1e-8
        assert abs(float(term["kl_approx"])) <= 1e-8
        assert_close(batch["state_value"], collected["state_value"], **EXACT)

    train(agent, WalkEnv(), check)
    # what is exact before updates is not after them
    assert len(first) == 4
    assert ratio_error(agent, first[0]) > 1e-2


@pytest.mark.parametrize("state", ["lean", "stored"])
def test_ratio_in_single_precision_with_fresh_parameters(state: Any) -> None:
    memory = SHMModule(2, 6, norm=False, state=state, in_key="observation", out_key="features")
    agent = shared(memory, torch.float32)

    def check(collected: Any, batch: Any) -> None:
        assert ratio_error(agent, batch) <= 1e-4
        assert_close(batch["state_value"], collected["state_value"], rtol=1e-4, atol=1e-4)

    train(agent, WindEnv(5, max_steps=13, seed=0), check, learning_rate=1e-2)


@pytest.mark.parametrize("make", [shared, separate])
def test_choices_have_to_be_those_that_acted(make: Callable[[], Agent]) -> None:
    agent = make()
    lost: list[float] = []

    def check(collected: Any, batch: Any) -> None:
        others = [key for key in batch.keys() if str(key).endswith("theta_index")]
        lost.append(ratio_error(agent, batch.exclude(*others)))

    train(agent, WalkEnv(), check)
    assert min(lost) > 1e-2


def test_memories_have_to_be_those_that_acted() -> None:
    agent = shared()
    lost: list[float] = []

    def check(collected: Any, batch: Any) -> None:
        empty = torch.zeros_like(batch["memory_lean"])
        lost.append(ratio_error(agent, batch.copy().set("memory_lean", empty)))

    train(agent, WalkEnv(), check)
    assert lost[0] <= 1e-8
    assert min(lost[1:]) > 1e-2


def test_value_after_a_truncation_is_that_of_the_last_observation() -> None:
    """Not that of the next episode, whose memory is empty."""
    agent = shared(make_memory(calibration="neural"))
    values: list[Tensor] = []

    def check(collected: Any, batch: Any) -> None:
        is_init = batch["is_init"].squeeze(-1)
        for b, step in batch["next", "truncated"].squeeze(-1).nonzero().tolist():
            starts = is_init[b, : step + 1].nonzero()
            if not len(starts):
                continue
            # the episode from its start, with the observation that ended it
            episode = batch[b, int(starts[-1]) : step + 1]
            episode = episode.exclude("memory_lean_index", "memory_lean", "memory_role", "next")
            last = episode[-1:].clone()
            last["observation"] = batch["next", "observation"][b, step : step + 1]
            last["is_init"] = torch.zeros_like(last["is_init"])
            with torch.no_grad(), set_recurrent_mode(True):
                value = agent.critic(torch.cat([episode, last]))["state_value"][-1]
            assert_close(batch["next", "state_value"][b, step], value, **EXACT)
            values.append(value)

    train(agent, WalkEnv(), check, num_steps=25)
    assert len(values) > 3


def test_value_after_a_sequence_is_that_of_the_next() -> None:
    """Also where an episode starts with the last step of a sequence."""
    agent = shared(make_memory(calibration="neural"))
    pairs: list[tuple[Any, Any]] = []
    train(agent, WalkEnv(), lambda *pair: pairs.append(pair), learning_rate=0.0)
    compared, starts = 0, 0
    for (_, estimated), (after, _) in pairwise(pairs):
        goes_on = ~after["is_init"][:, 0, 0]
        value = estimated["next", "state_value"][:, -1][goes_on]
        assert_close(value, after["state_value"][:, 0][goes_on], **EXACT)
        compared += len(value)
        starts += int((estimated["is_init"][:, -1, 0] & goes_on).sum())
    assert compared > 3
    assert starts


def test_estimators_that_need_a_memory_per_step_refuse_lean_sequences() -> None:
    agent = shared()

    def check(collected: Any, batch: Any) -> None:
        estimator = GAE(gamma=0.9, lmbda=0.8, value_network=agent.critic, shifted=False)
        data = collected.exclude("state_value", "features", ("next", "state_value"))
        message = r"run over next observations.*unroll.*or use shifted=True"
        with set_recurrent_mode(True), pytest.raises(ValueError, match=message):
            estimator(data)

    train(agent, WalkEnv(), check)
