"""Steps in one pass give the data of TorchRL's own path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import (
    EnvBase,
    InitTracker,
    RewardSum,
    StepCounter,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)
from torchrl.modules import GRUModule

from torchrl_shm import SHMModule, TMazeEnv, WindEnv
from torchrl_shm.envs.popgym import NoisyPositionOnlyCartPoleEnv, RepeatPreviousEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training.finite import FiniteSteps
from torchrl_shm.training.stepping import FiniteRewardSum, SteppingEnv

ENVS: dict[str, Callable[..., EnvBase]] = {
    "all end together": partial(RepeatPreviousEnv, 4),
    "end one by one": partial(NoisyPositionOnlyCartPoleEnv, 5, max_steps=20),
    "alone": partial(NoisyPositionOnlyCartPoleEnv, 1),
    "layouts are drawn for all": partial(TMazeEnv, 3, length=4),
    "actions are numbers": partial(WindEnv, 3, max_steps=9),
}


def make_gru_of_torchrl(
    input_size: int, output_size: int, *, in_key: Any, out_key: Any, device: Any, **options: Any
) -> Any:
    memory_key = options.pop("memory_key", "recurrent_state")
    keys = {"in_keys": [in_key, memory_key, "is_init"], "out_keys": [out_key, ("next", memory_key)]}
    return GRUModule(input_size, output_size, **keys, device=device)


MEMORIES: dict[str, Any] = {
    **{state: partial(SHMModule, state=state) for state in ("lean", "stored", "zero")},
    "of TorchRL": make_gru_of_torchrl,
}


def make(
    kind: type[TransformedEnv], name: str, memory: Any, *others: Transform, **options: Any
) -> Collector:
    env = ENVS[name](seed=1)
    torch.manual_seed(2)
    network = {"shared_memory": True, "time_size": 0}
    network = {key: options.pop(key, default) for key, default in network.items()}
    operator = make_actor_critic(env, memory, **network)
    transformed = kind(env, FiniteSteps())
    for transform in (FiniteRewardSum(), *others):
        transformed.append_transform(transform)
    frames = 30 * env.batch_size[0]
    options = {"frames_per_batch": frames, "total_frames": 2 * frames, "device": "cpu"} | options
    policy: Any = get_behavior(operator)
    return Collector(transformed, policy, auto_register_policy_transforms=True, **options)


def check_same(name: str, memory: Any, *others: Callable[[], Transform], **options: Any) -> Any:
    """Collect in both ways, and return the environment that steps in one pass."""
    collected: list[Any] = []
    for kind in (TransformedEnv, SteppingEnv):
        collector = make(kind, name, memory, *(other() for other in others), **options)
        collected.append(list(collector))
    ended = 0
    for expected, batch in zip(*collected, strict=True):
        keys = set(expected.keys(True, True))
        assert set(batch.keys(True, True)) == keys
        for key in keys:
            assert torch.equal(batch[key], expected[key]), key
            assert batch[key].dtype == expected[key].dtype, key
        ended += int(batch["next", "done"].sum())
    assert ended
    return collector.env


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", ENVS)
def test_same_data(name: str, memory: str) -> None:
    assert check_same(name, MEMORIES[memory])._look_up() is not None


def test_two_memories() -> None:
    assert check_same("end one by one", SHMModule, shared_memory=False)._look_up() is not None


def test_the_step_of_the_episode() -> None:
    check_same("end one by one", MEMORIES["lean"], time_size=4)


def test_random_first_steps() -> None:
    check_same("end one by one", SHMModule, init_random_frames=150)


def test_devices_that_are_not_given() -> None:
    check_same("end one by one", SHMModule, device=None)


@pytest.mark.parametrize(
    "other",
    [
        partial(StepCounter, 6),
        partial(RewardSum, in_keys=["reward"], out_keys=["total"]),
        partial(TensorDictPrimer, {"x": Unbounded(5)}, default_value=1.0, expand_specs=True),
    ],
)
def test_other_transforms_go_the_way_of_torchrl(other: Any) -> None:
    assert check_same("end one by one", SHMModule, other)._look_up() is None


def test_transforms_that_come_later() -> None:
    env: Any = SteppingEnv(WindEnv(2), InitTracker())
    assert env._look_up() is not None
    env.append_transform(StepCounter(3))
    assert env.rollout(7, break_when_any_done=False)["step_count"][0, :, 0].tolist() == [
        0, 1, 2, 0, 1, 2, 0,
    ]  # fmt: skip


def test_only_what_starts_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchRL's own path is not taken, and episodes are drawn where they start."""
    collector = make(SteppingEnv, "end one by one", SHMModule)
    env: Any = collector.env
    drawn: list[int] = []
    draw = env.base_env._draw
    monkeypatch.setattr(env.base_env, "_draw", lambda count: (drawn.append(count), draw(count))[1])
    for name in ("_step", "_reset"):
        monkeypatch.setattr(TransformedEnv, name, None)
    batch = collector.rollout()
    assert drawn == [n for n in batch["next", "done"].sum((0, 2)).tolist() if n]
    assert 0 < max(drawn) < 5
    assert batch["is_init"].sum() == 5 + batch["next", "done"][:, :-1].sum()


def test_parts_of_a_batch_may_wait() -> None:
    env = SteppingEnv(WindEnv(2, seed=0), InitTracker())
    data = env.reset()
    data["action"] = torch.ones(2, 2)
    data["_step"] = torch.tensor([True, False])
    step: Any = env.step_and_maybe_reset(data)[0]
    moved = (step["next", "observation"] != step["observation"]).any(-1)
    assert moved.tolist() == [True, False]


class Overriding(WindEnv):
    """Has a step of its own."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super()._step(tensordict).set("reward", torch.full((2, 1), 7.0))


def test_an_environment_with_a_step_of_its_own() -> None:
    env: Any = SteppingEnv(Overriding(2), InitTracker())
    assert env.rollout(3)["next", "reward"].eq(7).all()
