"""Agents: the batch dimensions that a branch of nested keys has beyond those of the root.

In data of several agents the root is of shape `[B]` and the branch `"agents"` of shape `[B, A]`. In
collected sequences these are `[B, T]` and `[B, T, A]`: time is the last dimension of the root, and
the agents come after it.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs import EnvBase


def branch_of(key: NestedKey) -> tuple[str, ...]:
    """The branch in which a key lies: `("agents",)` of `("agents", "memory")`, `()` of the root."""
    path: Any = key
    return () if isinstance(path, str) else path[:-1]


def check_branches(in_key: NestedKey, memory_key: NestedKey) -> None:
    """Refuse an input whose agents the memory may not have.

    Args:
        in_key: key of the input. One at the root goes with a memory in any branch of its shape.
        memory_key: key of the memory.

    Raises:
        ValueError: the keys lie in different branches.
    """
    branch, home = branch_of(in_key), branch_of(memory_key)
    depth = min(len(branch), len(home))
    if branch and (not home or branch[:depth] != home[:depth]):
        raise ValueError(
            f"the input {in_key!r} and the memory {memory_key!r} lie in different branches, which "
            "may be of different agents: put the memory beside the input, "
            f"memory_key={(*branch, 'memory')!r}"
        )


def check_batches(
    in_key: NestedKey, in_batch: torch.Size, memory_key: NestedKey, memory_batch: torch.Size
) -> None:
    """Refuse a memory that is not one per input.

    Args:
        in_key: key of the input.
        in_batch: batch shape of the input.
        memory_key: key of the memory.
        memory_batch: batch shape of the memory.

    Raises:
        ValueError: the shapes differ.
    """
    if in_batch != memory_batch:
        raise ValueError(
            f"there are memories {memory_key!r} for {list(memory_batch)} agents, but inputs "
            f"{in_key!r} of {list(in_batch)}: both must lie in the same branch, whose specs in the "
            "environment must have the shape [*environments, *agents]"
        )


def branch_shape(env: EnvBase, branch: tuple[str, ...]) -> torch.Size:
    """Batch shape of a branch of an environment's data.

    Args:
        env: the environment.
        branch: the branch. What only the policy writes has the shape of what it lies in.

    Returns:
        `[B, A]` for the `A` agents of `B` environments, `[B]` for the root.
    """
    specs: list[Any] = [env.full_observation_spec, env.full_action_spec, env.full_done_spec]
    while branch:
        for spec in specs:
            found = spec.get(branch, None)
            if isinstance(found, Composite):
                return found.shape
        branch = branch[:-1]
    return env.batch_size


def nest_specs(leaves: dict[NestedKey, Any], env: EnvBase | None) -> Composite:
    """Put specs into branches of the shapes that they have in an environment.

    Args:
        leaves: specs by key.
        env: the environment; without one all branches are of shape `[]`.

    Returns:
        The specs.
    """
    specs: Any = Composite(shape=torch.Size(()) if env is None else env.batch_size)
    for key, leaf in leaves.items():
        branch = branch_of(key)
        for depth in range(1, len(branch) + 1):
            node = branch[:depth]
            if node not in specs.keys(True):
                shape = specs.shape if env is None else branch_shape(env, node)
                specs[node] = Composite(shape=shape)
        specs[key] = leaf
    return specs


def find_reset_key(env: EnvBase, branch: tuple[str, ...]) -> NestedKey | None:
    """The flags of an environment that reset a branch, or `None`.

    Args:
        env: the environment.
        branch: the branch.

    Returns:
        The shallowest flags on the way to the branch, as TorchRL has it: where an environment is
        reset as a whole, its agents have no resets of their own.
    """
    # they are sorted by depth
    for key in env.reset_keys:
        root = branch_of(key)
        if branch[: len(root)] == root:
            return key
    return None


def agents_of(in_key: NestedKey, x: Tensor, shape: torch.Size) -> torch.Size:
    """Batch dimensions of an input beyond those of the root.

    Args:
        in_key: key of the input; one at the root has no agents.
        x: the input, of shape `[*shape, *agents, D]`.
        shape: batch shape of the root.

    Returns:
        `[A]`, or `[]` where there is one agent per environment.
    """
    return x.shape[len(shape) : -1] if branch_of(in_key) else torch.Size(())


def expand_flags(is_init: Tensor, shape: torch.Size, agents: torch.Size) -> Tensor:
    """Give every agent a reset flag; one at the root holds for all agents of an environment.

    Args:
        is_init: bool of shape `[*shape]` or `[*shape, *agents]`, with a last dimension of 1 or not.
        shape: batch shape of the root.
        agents: batch dimensions of the agents.

    Returns:
        The flags, of shape `[*shape, *agents]`.

    Raises:
        ValueError: the flags are those of other agents.
    """
    per_agent = torch.Size((*shape, *agents))
    if is_init.numel() == shape.numel():
        flags = is_init.reshape((*shape, *(1 for _ in agents)))
        return flags.expand(per_agent) if agents else flags
    if is_init.numel() != per_agent.numel():
        raise ValueError(
            f"reset flags of shape {list(is_init.shape)} are neither one per environment, "
            f"{list(shape)}, nor one per agent, {list(per_agent)}"
        )
    return is_init.reshape(per_agent)


def to_sequences(key: NestedKey, entry: Tensor, shape: torch.Size, agents: torch.Size) -> Tensor:
    """Make every agent of every environment a sequence of its own.

    Args:
        key: key of the entry.
        entry: of shape `[*batch, T, *agents, ...]`.
        shape: batch shape of the root, `[*batch, T]`.
        agents: batch dimensions of the agents.

    Returns:
        The entry, of shape `[N, T, ...]`, where `N` counts agents, environment by environment.

    Raises:
        ValueError: the entry is not one per agent.
    """
    per_agent, rest = (*shape, *agents), entry.shape[len(shape) + len(agents) :]
    if entry.shape != (*per_agent, *rest):
        raise ValueError(
            f"{key!r} is of shape {list(entry.shape)}, but the input has one entry per step and "
            f"agent, {list(per_agent)}"
        )
    time = len(shape) - 1
    num_sequences = shape[:-1].numel() * agents.numel()
    if not agents:
        return entry.reshape(num_sequences, shape[-1], *rest)
    return entry.movedim(time, time + len(agents)).reshape(num_sequences, shape[-1], *rest)


def from_sequences(entry: Tensor, shape: torch.Size, agents: torch.Size) -> Tensor:
    """Undo `to_sequences`.

    Args:
        entry: of shape `[N, T, ...]`.
        shape: batch shape of the root, `[*batch, T]`.
        agents: batch dimensions of the agents.

    Returns:
        The entry, of shape `[*batch, T, *agents, ...]`.
    """
    if not agents:
        return entry.reshape(*shape, *entry.shape[2:])
    time = len(shape) - 1
    entry = entry.reshape(*shape[:-1], *agents, shape[-1], *entry.shape[2:])
    return entry.movedim(time + len(agents), time)
