"""Steps of an episode as features: counted alike by collectors, losses and exported policies."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.testing import assert_close
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm import SHMModule, WindEnv, unroll
from torchrl_shm.modules import make_mlp
from torchrl_shm.networks import Clock, EnvSpecs, get_behavior, make_actor_critic
from torchrl_shm.sharing import PlainPolicy
from torchrl_shm.training import RolloutCollector


def features_of(steps: Tensor, size: int = 8) -> Tensor:
    """Written down a second time."""
    count = size // 2
    frequencies = [2.5 * (0.12 / 2.5) ** (i / (count - 1)) for i in range(count)]
    angles = torch.stack([steps * frequency for frequency in frequencies], -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


def flags(*episodes: int, first: bool = True) -> Tensor:
    """Reset flags `[1, T, 1]` of episodes of these lengths."""
    starts = [[True] + [False] * (length - 1) for length in episodes]
    starts[0][0] = first
    return torch.tensor([flag for episode in starts for flag in episode]).reshape(1, -1, 1)


def collect(memory: Any, num_batches: int = 2, **options: Any) -> tuple[Any, list[Any]]:
    env = partial(WindEnv, max_steps=7)
    operator = make_actor_critic(env(3), memory, time_size=8, **options)
    collector = RolloutCollector(
        env, get_behavior(operator), num_envs=3, rollout_length=10, total_frames=30 * num_batches
    )
    batches = list(collector)
    collector.close()
    return operator, batches


def test_features() -> None:
    data = TensorDict({"is_init": flags(40)}, [1, 40])
    with set_recurrent_mode(True):
        data = Clock(8)(data)
    assert_close(data["time"][0], features_of(torch.arange(40)))


@pytest.mark.parametrize("first", [True, False])
def test_steps_and_sequences_agree(first: bool) -> None:
    clock, is_init = Clock(8), flags(5, 3, 9, first=first)
    step, steps, rows = torch.full((1, 1), 4), [], []
    for t in range(17):
        data = TensorDict({"is_init": is_init[:, t], "episode_step": step}, [1])
        data = clock(data)
        step = data["next", "episode_step"]
        steps.append(data["episode_step"])
        rows.append(data["time"])
    start = 0 if first else 4
    expected = [*range(start, start + 5), *range(3), *range(9)]
    assert torch.stack(steps, 1).flatten().tolist() == expected
    sequence = TensorDict({"is_init": is_init, "episode_step": torch.stack(steps, 1)}, [1, 17])
    with set_recurrent_mode(True):
        assert_close(clock(sequence)["time"], torch.stack(rows, 1))


def test_parts_of_sequences_count_on() -> None:
    """A sampler of slices flags the first step of each, whatever step that is."""
    is_init, step = flags(4, 4), torch.tensor([2, 3, 4, 5, 7, 8, 9, 10]).reshape(1, 8, 1)
    data = TensorDict({"is_init": is_init, "episode_step": step}, [1, 8])
    with set_recurrent_mode(True):
        assert_close(Clock(8)(data)["time"][0], features_of(step.flatten()))


@pytest.mark.parametrize("memory", [SHMModule, partial(SHMModule, state="stored"), make_mlp])
@pytest.mark.parametrize("shared_memory", [True, False])
def test_collectors_count(memory: Any, shared_memory: bool) -> None:
    operator, batches = collect(memory, shared_memory=shared_memory)
    data = torch.cat(batches, 1)
    expected = torch.arange(20) % 7
    assert data["episode_step"].squeeze(-1).tolist() == [expected.tolist()] * 3
    assert data["next", "episode_step"].squeeze(-1).tolist() == [(expected + 1).tolist()] * 3
    # losses compute the features again
    assert "time" not in data.keys()
    with torch.no_grad(), set_recurrent_mode(True):
        for batch in batches:
            log_prob = operator.get_policy_operator().get_dist(batch).log_prob(batch["action"])
            assert_close(log_prob, batch["action_log_prob"])


def test_what_came_next_is_a_step_later() -> None:
    operator, (batch,) = collect(SHMModule, num_batches=1)
    result = unroll(operator, batch)
    assert_close(result["time"], features_of(batch["episode_step"].squeeze(-1)))
    assert_close(result["next", "time"], features_of(batch["episode_step"].squeeze(-1) + 1))


def test_the_time_is_read() -> None:
    """The same observation, the same empty memory, another step."""
    operator, _ = collect(make_mlp, num_batches=1)
    data = TensorDict({key: torch.zeros(2, 2) for key in ("observation", "previous_action")}, [2])
    data["is_init"] = torch.zeros(2, 1, dtype=torch.bool)
    data["episode_step"] = torch.tensor([[1], [2]])
    first, second = operator(data)["state_value"]
    assert first != second


def test_exported_policies_count() -> None:
    env = WindEnv(3, max_steps=7)
    operator = make_actor_critic(env, make_mlp, time_size=8)
    policy = PlainPolicy(operator.get_policy_operator(), EnvSpecs.of(env))
    transformed = TransformedEnv(env, get_env_transforms_from_module(policy.module))
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = transformed.rollout(10, policy.module, break_when_any_done=False)
    memory = policy.initial_memory(3)
    for step in rollout.unbind(1):
        observation = {key: step[key] for key in policy.specs.policy_keys}
        action, memory = policy(observation, memory, step["is_init"].squeeze(-1))
        assert_close(action, step["action"])


def test_errors() -> None:
    with pytest.raises(ValueError, match="size=3 must be a positive even number"):
        Clock(3)
    with pytest.raises(ValueError, match=r"fastest=0\.1 must be at least slowest=0\.2"):
        Clock(4, fastest=0.1, slowest=0.2)
    with pytest.raises(ValueError, match=r"network\.time_size=-2"):
        make_actor_critic(WindEnv(2), SHMModule, time_size=-2)
    middle = TensorDict({"is_init": torch.zeros(2, 1, dtype=torch.bool)}, [2])
    with pytest.raises(KeyError, match="'episode_step' is missing in the middle"):
        Clock(4)(middle)
    with pytest.raises(KeyError, match="reset flags 'is_init' are missing"):
        Clock(4)(TensorDict({}, [2]))
