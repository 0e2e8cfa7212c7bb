"""On plain tensors a policy does what it does in an environment, step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.data import Categorical, MultiCategorical
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_env_transforms_from_module

from tests.training._helpers import MEMORIES, Countdown
from torchrl_shm import MemoryLengthEnv, SHMModule, VisualMatchEnv, WindEnv
from torchrl_shm.networks import EnvSpecs, make_actor_critic
from torchrl_shm.sharing import PlainPolicy

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


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_it_acts_as_in_an_environment(task: str, memory: str) -> None:
    env = TASKS[task](3)
    policy = make(env, MEMORIES[memory], KEYS.get(task))
    data = rollout(policy, env, ExplorationType.DETERMINISTIC)
    # episodes start within the rollout, too
    assert data["is_init"][:, 1:].any()
    assert torch.equal(replay(policy, data), data["action"])


@pytest.mark.parametrize("task", TASKS)
def test_it_draws_as_in_an_environment(task: str) -> None:
    env = TASKS[task](3)
    policy = make(env, keys=KEYS.get(task))
    data = rollout(policy, env, ExplorationType.RANDOM)
    assert torch.equal(replay(policy, data, deterministic=False), data["action"])
    assert not torch.equal(replay(policy, data), data["action"])


@pytest.mark.parametrize("memory", MEMORIES)
def test_rows_start_anew_where_told(memory: str) -> None:
    env = WindEnv(3)
    policy = make(env, MEMORIES[memory], ["observation"])
    first, second = torch.randn(2, 3, 2)
    torch.manual_seed(2)
    _, memory_after = policy(first, policy.initial_memory(3))
    is_init = torch.tensor([False, True, False])

    def act(memory: Any, is_init: Tensor | None = None) -> Tensor:
        torch.manual_seed(3)
        return policy(second, memory, is_init)[0]

    found, kept, fresh = (
        act(memory_after, is_init), act(memory_after), act(policy.initial_memory(3)),
    )  # fmt: skip
    assert torch.equal(found, torch.where(is_init[:, None], fresh, kept))
    # with a memory the past matters
    assert torch.equal(kept, fresh) == (memory == "mlp")


def test_a_single_entry_needs_no_dictionary_and_others_are_ignored() -> None:
    policy = make(WindEnv(2), MEMORIES["gru"], ["observation"])
    memory = policy.initial_memory(2)
    x = torch.randn(2, 2)
    alone, _ = policy(x, memory)
    among_others, _ = policy({"time": torch.zeros(2), "observation": x}, memory)
    assert torch.equal(alone, among_others)


@pytest.mark.parametrize("memory", MEMORIES)
def test_memory_is_handed_on_and_never_changed(memory: str) -> None:
    policy = make(WindEnv(2), MEMORIES[memory], ["observation"])
    before = policy.initial_memory(2)
    _, after = policy(torch.randn(2, 2), before)
    shapes = {key: (x.shape, x.dtype) for key, x in before.items()}
    assert {key: (x.shape, x.dtype) for key, x in after.items()} == shapes
    assert (
        set(before)
        == {
            "shm": {"memory"},
            "gru": {"recurrent_state"},
            "lstm": {"recurrent_state_h", "recurrent_state_c"},
            "mlp": set(),
        }[memory]
    )
    for key in before:
        assert not before[key].any()
        assert after[key].any()
        assert not after[key].requires_grad


def test_modes_of_the_caller_do_not_matter() -> None:
    policy = make(WindEnv(2), MEMORIES["gru"], ["observation"])
    x, memory = torch.randn(2, 2), policy.initial_memory(2)
    expected, _ = policy(x, memory)
    with set_recurrent_mode(True), set_exploration_type(ExplorationType.RANDOM):
        found, _ = policy(x, memory)
    assert torch.equal(found, expected)
    assert not found.requires_grad


class TestMistakes:
    @pytest.fixture
    def policy(self) -> PlainPolicy:
        return make(WindEnv(2))

    @staticmethod
    def look(**replace: Any) -> dict[str, Any]:
        return {"observation": torch.zeros(4, 2), "previous_action": torch.zeros(4, 2), **replace}

    @pytest.mark.parametrize(
        ("replace", "error", "message"),
        [
            (
                {"observation": torch.zeros(4, 3)},
                ValueError,
                r"'observation' is \[4, 3\], expected \[B, 2\]",
            ),
            ({"observation": torch.zeros(2)}, ValueError, r"is \[2\], .*x\.unsqueeze\(0\)"),
            (
                {"previous_action": torch.zeros(5, 2)},
                ValueError,
                r"'previous_action' is \[5, 2\], expected \[4, 2\]",
            ),
            (
                {"observation": torch.zeros(4, 2).double()},
                TypeError,
                r"torch\.float64, expected torch\.float32; convert it with \.to\(torch\.float32\)",
            ),
            ({"observation": [[0.0, 0.0]]}, TypeError, r"'observation' is a list; make a tensor"),
            ({"observation": torch.zeros(4, 2, device="meta")}, ValueError, "is on meta but the"),
        ],
        ids=["shape", "no batch", "other batch", "dtype", "list", "device"],
    )
    def test_observation(
        self, policy: PlainPolicy, replace: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            policy(self.look(**replace), policy.initial_memory(4))

    def test_missing_entry(self, policy: PlainPolicy) -> None:
        with pytest.raises(KeyError, match=r"\['previous_action'\] are missing.*got \['obs"):
            policy({"observation": torch.zeros(4, 2)}, policy.initial_memory(4))

    def test_tensor_for_several_entries(self, policy: PlainPolicy) -> None:
        with pytest.raises(TypeError, match=r"reads \['observation', 'previous_action'\]: pass"):
            policy(torch.zeros(4, 2), policy.initial_memory(4))

    def test_memory_of_another_batch_size(self, policy: PlainPolicy) -> None:
        with pytest.raises(
            ValueError, match=r"memory\['memory'\] is \[3, 24, 24\], expected \[4, 24, 24\]"
        ):
            policy(self.look(), policy.initial_memory(3))

    def test_memory_of_another_policy(self, policy: PlainPolicy) -> None:
        other = make(WindEnv(2), MEMORIES["gru"])
        with pytest.raises(KeyError, match=r"no 'memory', only \['recurrent_state'\]; start with"):
            policy(self.look(), other.initial_memory(4))

    @pytest.mark.parametrize(
        ("is_init", "error", "message"),
        [
            (torch.zeros(4), TypeError, r"is_init is torch\.float32, expected torch\.bool"),
            (
                torch.zeros(4, 1, dtype=torch.bool),
                ValueError,
                r"is_init is \[4, 1\], expected \[4\]",
            ),
            (torch.zeros(3, dtype=torch.bool), ValueError, r"is_init is \[3\], expected \[4\]"),
        ],
    )
    def test_flags(
        self, policy: PlainPolicy, is_init: Tensor, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            policy(self.look(), policy.initial_memory(4), is_init)

    def test_batch_size(self, policy: PlainPolicy) -> None:
        with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
            policy.initial_memory(0)


def test_specs_stand_in_for_an_environment() -> None:
    env = Countdown(2, action_spec=Categorical(3, shape=torch.Size((2,))))
    torch.manual_seed(0)
    expected = make_actor_critic(env, SHMModule).state_dict()
    torch.manual_seed(0)
    found = make_actor_critic(EnvSpecs.of(env), SHMModule).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
