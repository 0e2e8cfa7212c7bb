"""Several agents: steps, sequences, and keys and data that do not fit together."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.modules import set_recurrent_mode

from tests.modules._agents import (
    AGENTS,
    FEATURES,
    FLAGS,
    MEMORY,
    OBSERVED,
    AgentsEnv,
    make,
    make_agents_policy,
    make_data,
)
from tests.modules._helpers import (
    DTYPE,
    EXACT,
    SIZE,
    collect,
    make_memory,
    run_steps,
)

CHOICE = ("agents", "theta_index")


# modes


@pytest.mark.parametrize("flags", ["is_init", FLAGS])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_each_agent_is_a_sequence_of_its_own(batch: tuple[int, ...], flags: Any) -> None:
    module = make("agents" if flags == FLAGS else "root")
    data = make_data((*batch, 9), flags)
    if flags == FLAGS:
        assert (data[flags][..., 0, :] != data[flags][..., 1, :]).any()
    with set_recurrent_mode(True):
        data = module(data)
    assert data[FEATURES].shape == (*batch, 9, AGENTS, 6)
    assert data[CHOICE].shape == (*batch, 9, AGENTS)
    is_init = data[flags].squeeze(-1)
    for agent in range(AGENTS):
        own = is_init[..., agent] if flags == FLAGS else is_init
        x, own, index = (
            entry.reshape(-1, *entry.shape[len(batch) :])
            for entry in (data[OBSERVED][..., agent, :], own, data[CHOICE][..., agent])
        )
        memory = torch.zeros(len(x), 4, 4, dtype=DTYPE)
        y, _ = run_steps(module.cell, x, memory, own, index)
        assert_close(data[FEATURES][..., agent, :].reshape(y.shape), y, **EXACT)


@pytest.mark.parametrize("flags", ["is_init", FLAGS])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_step_mode(batch: tuple[int, ...], flags: Any) -> None:
    module = make("agents" if flags == FLAGS else "root")
    data = make_data((*batch, 2), flags)[..., 0]
    first = data[flags].clone()
    if flags == FLAGS or batch:
        first.view(-1)[0] = False
    kept = torch.randn(*batch, AGENTS, 4, 4, dtype=DTYPE)
    data = module(data.set(flags, first).set(MEMORY, kept))
    assert data[FEATURES].shape == (*batch, AGENTS, 6)
    if flags == "is_init":
        first = first.unsqueeze(-2)
    entered = torch.where(first.unsqueeze(-1), 0, kept)
    y, memory, _ = module.cell.step(data[OBSERVED], entered, data[CHOICE])
    assert_close(data[FEATURES], y, **EXACT)
    assert_close(data["next", "agents", "memory"], memory, **EXACT)


# what is refused


@pytest.mark.parametrize(
    "memory", ["memory", ("others", "memory"), ("agent", "observation", "memory")]
)
def test_keys_of_different_branches(memory: Any) -> None:
    message = (
        f"the input {OBSERVED!r} and the memory {memory!r} lie in different branches, which may be "
        "of different agents: put the memory beside the input, memory_key=('agents', 'memory')"
    )
    for keys in ({"in_keys": [OBSERVED, memory]}, {"in_key": OBSERVED, "memory_key": memory}):
        options: Any = keys
        with pytest.raises(ValueError, match=re.escape(message)):
            make_memory(out_key=FEATURES, **options)


def test_flags_of_each_agent_have_to_be_named() -> None:
    policy = make_agents_policy(make("root"))
    message = r"'is_init' are missing.*one per agent, pass is_init_key=\('agents', 'is_init'\)"
    with pytest.raises(KeyError, match=message):
        collect(policy, AgentsEnv(done="agents"))


def test_flags_of_other_agents() -> None:
    data = make_data((3, 9)).set("is_init", torch.ones(3, 9, 3, dtype=torch.bool))
    message = r"\[3, 9, 3\] are neither one per environment, \[3, 9\], nor one per agent, \[3, 9, 2"
    with pytest.raises(ValueError, match=message), set_recurrent_mode(True):
        make()(data)


@pytest.mark.parametrize(
    ("in_key", "inputs", "memories"), [("x", (3,), (3, 2)), (OBSERVED, (3, 2), (3,))]
)
def test_memories_of_other_agents(in_key: Any, inputs: Any, memories: Any) -> None:
    """As where a branch has no dimension of agents in the specs of the environment."""
    entries: Any = {"x": torch.randn(3, SIZE, dtype=DTYPE), "is_init": torch.ones(3, 1) > 0}
    data = TensorDict(entries, [3]).set(OBSERVED, torch.randn(3, 2, SIZE, dtype=DTYPE))
    data[MEMORY] = torch.zeros(*memories, 4, 4, dtype=DTYPE)
    message = f"memories {MEMORY!r} for {list(memories)} agents, but inputs {in_key!r} of "
    with pytest.raises(ValueError, match=re.escape(f"{message}{list(inputs)}: both must lie")):
        make_memory(in_keys=[in_key, MEMORY], out_key="features")(data)


def test_one_memory_for_all_agents() -> None:
    data = make_data((3, 9))
    data["agents"].batch_size = (3, 9)
    data[MEMORY] = torch.zeros(3, 9, 4, 4, dtype=DTYPE)
    message = r"\('agents', 'memory'\) is of shape \[3, 9, 4, 4\], but .* agent, \[3, 9, 2\]"
    with pytest.raises(ValueError, match=message), set_recurrent_mode(True):
        make(state="stored")(data)
