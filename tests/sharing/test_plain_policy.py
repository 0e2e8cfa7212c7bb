"""On plain tensors a policy does what it does in an environment, step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_env_transforms_from_module

from tests.training._helpers import MEMORIES, Countdown
from torchrl_shm import MemoryLengthEnv, SHMModule, VisualMatchEnv, WindEnv
from torchrl_shm.networks import EnvSpecs, make_actor_critic
from torchrl_shm.sharing import PlainPolicy
from torchrl_shm.sharing.policy_file import (
    ObservationEntry,
    PolicyFile,
    action_entry,
    observation_entries,
)

STEPS = 12
# episodes end within the steps
TASKS: dict[str, Any] = {
    "continuous": partial(WindEnv, max_steps=5),
    "index": partial(MemoryLengthEnv, length=4),
    "pixels": partial(VisualMatchEnv, frames=(2, 2, 3)),
    "indices": partial(Countdown, action_spec=MultiCategorical([5, 5], shape=torch.Size((3, 2)))),
    "keys": partial(WindEnv, max_steps=5),
}
KEYS: dict[str, list[str]] = {"keys": ["previous_action", "observation"]}


def make(env: EnvBase, memory: Any = SHMModule, keys: list[str] | None = None) -> PlainPolicy:
    specs = EnvSpecs.of(env, keys)
    operator = make_actor_critic(specs, memory, embedding_size=8, hidden_sizes=(8,))
    # a fresh policy does nearly nothing
    for parameter in operator.get_policy_head().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return PlainPolicy(operator.get_policy_operator(), specs)


def rollout(policy: PlainPolicy, env: EnvBase, mode: ExplorationType) -> Any:
    transforms = get_env_transforms_from_module(policy.module)
    with torch.no_grad(), set_exploration_type(mode):
        torch.manual_seed(1)
        return TransformedEnv(env, transforms).rollout(
            STEPS, policy.module, break_when_any_done=False
        )


def replay(policy: PlainPolicy, data: Any, **options: Any) -> Tensor:
    """The actions of a policy that is shown what another one saw."""
    torch.manual_seed(1)
    memory = policy.initial_memory(len(data))
    actions: list[Tensor] = []
    for step in data.unbind(-1):
        observation = {str(key): step[key] for key in policy.specs.policy_keys}
        action, memory = policy(observation, memory, step["is_init"].squeeze(-1), **options)
        actions.append(action)
    return torch.stack(actions, 1)


@pytest.mark.parametrize(
    ("task", "memory"), [*((task, "shm") for task in TASKS), *(("keys", x) for x in MEMORIES)]
)
def test_it_acts_as_in_an_environment(task: str, memory: str) -> None:
    env = TASKS[task](3)
    policy = make(env, MEMORIES[memory], KEYS.get(task))
    data = rollout(policy, env, ExplorationType.DETERMINISTIC)
    # episodes start within the rollout, too
    assert data["is_init"][:, 1:].any()
    assert torch.equal(replay(policy, data), data["action"])
    drawn = rollout(policy, env, ExplorationType.RANDOM)
    assert torch.equal(replay(policy, drawn, deterministic=False), drawn["action"])
    assert not torch.equal(replay(policy, drawn), drawn["action"])


@pytest.mark.parametrize(
    ("memory", "keys"),
    [
        ("shm", {"memory"}),
        ("gru", {"memory"}),
        ("lstm", {"memory"}),
        ("mlp", set()),
    ],
)
def test_memory_is_passed_on_and_starts_anew_where_told(memory: str, keys: set[str]) -> None:
    policy = make(WindEnv(3), MEMORIES[memory], ["observation"])
    first, second = torch.randn(2, 3, 2)
    before = policy.initial_memory(3)
    _, after = policy(first, before)
    shapes = {key: (x.shape, x.dtype) for key, x in before.items()}
    assert {key: (x.shape, x.dtype) for key, x in after.items()} == shapes
    assert before.keys() == keys
    for key in keys:
        # what comes in is never changed
        assert not before[key].any()
        assert after[key].any()
        assert not after[key].requires_grad

    def act(memory: Any, is_init: Tensor | None = None) -> Tensor:
        torch.manual_seed(3)
        return policy(second, memory, is_init)[0]

    is_init = torch.tensor([False, True, False])
    found, kept, fresh = act(after, is_init), act(after), act(before)
    assert torch.equal(found, torch.where(is_init[:, None], fresh, kept))
    # with a memory the past matters
    assert torch.equal(kept, fresh) == (memory == "mlp")


def test_one_entry_needs_no_dictionary_and_modes_of_the_caller_do_not_matter() -> None:
    policy = make(WindEnv(2), MEMORIES["gru"], ["observation"])
    x, memory = torch.randn(2, 2), policy.initial_memory(2)
    expected, _ = policy(x, memory)
    with set_recurrent_mode(True), set_exploration_type(ExplorationType.RANDOM):
        # further entries are ignored
        found, _ = policy({"time": torch.zeros(2), "observation": x}, memory)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_an_index_is_to_be_one_hot() -> None:
    policy = make(MemoryLengthEnv(2), MEMORIES["gru"], ["observation"])
    memory = policy.initial_memory(1)
    for index in (torch.tensor(2), torch.tensor([2]), torch.tensor([[2]])):
        with pytest.raises(TypeError, match=r"Discrete\(3\), is one-hot here: .*one_hot\(x, 3\)"):
            policy(index, memory)
    # what the advice for dtypes and batches would lead to
    with pytest.raises(ValueError, match=r"is one-hot here"):
        policy(torch.tensor([2.0]), memory)
    row = torch.nn.functional.one_hot(torch.tensor([2]), 3)
    policy(row.float(), memory)
    with pytest.raises(TypeError, match=r"convert it with \.to"):
        policy(row, memory)


X = torch.zeros(4, 2)
LOOK = {"observation": X, "previous_action": X}
SHM = torch.zeros(4, 24, 24)


@pytest.mark.parametrize(
    ("observation", "options", "error", "message"),
    [
        (LOOK | {"observation": torch.zeros(4, 3)}, {}, ValueError,
         r"'observation' is \[4, 3\], expected \[B, 2\]"),
        (LOOK | {"observation": torch.zeros(2)}, {}, ValueError,
         r"is \[2\], .*x\.unsqueeze\(0\)"),
        (LOOK | {"previous_action": torch.zeros(5, 2)}, {}, ValueError,
         r"'previous_action' is \[5, 2\], expected \[4, 2\]"),
        (LOOK | {"observation": X.double()}, {}, TypeError,
         r"torch\.float64, expected torch\.float32; convert it with \.to\(torch\.float32\)"),
        (LOOK | {"observation": [[0.0, 0.0]]}, {}, TypeError, "'observation' is a list; make a"),
        (LOOK | {"observation": X.to("meta")}, {}, ValueError, "is on meta but the policy on cpu"),
        ({"observation": X}, {}, KeyError, r"\['previous_action'\] are missing.*got \['obs"),
        (X, {}, TypeError, r"reads \['observation', 'previous_action'\]: pass"),
        (LOOK, {"memory": {"memory": SHM[:3]}}, ValueError,
         r"memory\['memory'\] is \[3, 24, 24\], expected \[4, 24, 24\]"),
        (LOOK, {"memory": {"hidden": X}}, KeyError,
         r"no 'memory', only \['hidden'\]; start with"),
        (LOOK, {"is_init": torch.zeros(4)}, TypeError, "is torch.float32, expected torch.bool"),
        (LOOK, {"is_init": torch.zeros(4, 1).bool()}, ValueError, r"is \[4, 1\], expected \[4\]"),
        (LOOK, {"is_init": torch.zeros(3).bool()}, ValueError, r"is_init is \[3\], expected \[4\]"),
    ],
)  # fmt: skip
def test_mistakes(
    observation: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    policy = make(WindEnv(2))
    with pytest.raises(error, match=message):
        policy(observation, **({"memory": {"memory": SHM}} | options))


def test_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        make(WindEnv(2)).initial_memory(0)


def test_specs_stand_in_for_an_environment() -> None:
    env = Countdown(2, action_spec=Categorical(3, shape=torch.Size((2,))))
    torch.manual_seed(0)
    expected = make_actor_critic(env, SHMModule).state_dict()
    torch.manual_seed(0)
    found = make_actor_critic(EnvSpecs.of(env), SHMModule).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_nested_entries() -> None:
    """Under the key of a TensorDict or in a dictionary of their own; and in `config.json`."""
    specs = EnvSpecs(
        Composite(arm=Composite(joints=Unbounded((3,)), eye=Unbounded((3, 8, 8))), x=Unbounded(())),
        Categorical(4),
        [("arm", "eye"), "x", ("arm", "joints")],
    )
    policy = PlainPolicy(make_actor_critic(specs, MEMORIES["gru"]).get_policy_operator(), specs)
    eye, joints, x = torch.randn(2, 3, 8, 8), torch.randn(2, 3), torch.randn(2)
    memory = policy.initial_memory(2)
    flat = policy({("arm", "eye"): eye, ("arm", "joints"): joints, "x": x}, memory)
    nested = policy({"arm": {"eye": eye, "joints": joints}, "x": x}, memory)
    assert torch.equal(flat[1]["memory"], nested[1]["memory"])
    assert flat[1]["memory"].any()
    with pytest.raises(KeyError, match=r"\[\('arm', 'eye'\)\] are missing"):
        policy({"arm": {"joints": joints}, "x": x}, memory)

    entries = observation_entries(specs)
    assert [entry.model_dump()["key"] for entry in entries] == [
        ["arm", "eye"], "x", ["arm", "joints"],
    ]  # fmt: skip
    again = [ObservationEntry.model_validate_json(entry.model_dump_json()) for entry in entries]
    found = PolicyFile.model_construct(observations=again, action=action_entry(Categorical(4)))
    assert list(found.specs().policy_keys) == list(specs.policy_keys)
    assert found.specs().observation_spec_unbatched["arm", "eye"].shape == (3, 8, 8)


def test_a_memory_that_overflows_is_an_error() -> None:
    env = WindEnv(2)
    policy = make(env)
    memory = {key: torch.full_like(x, 3e38) for key, x in policy.initial_memory(2).items()}
    observation = {"observation": torch.ones(2, 2), "previous_action": torch.ones(2, 2)}

    def play() -> None:
        carried = memory
        for _ in range(20):
            _, carried = policy(observation, carried)

    with pytest.raises(FloatingPointError, match=r"'memory'\] is not finite in rows .*clamp=100"):
        play()
    observation["observation"][1, 0] = torch.nan
    match = r"^observation 'observation' is not finite in rows \[1\]: the policy cannot act on it$"
    with pytest.raises(FloatingPointError, match=match):
        play()
