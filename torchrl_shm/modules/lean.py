"""Lean rollouts: one memory per collected sequence instead of one per step.

A collector stacks whatever a step leaves in its TensorDict. A matrix memory would be stacked
twice, `2 * B * T * H * H` floats, although training needs it only where a sequence starts. So the
primer of this file takes the memory out of what is stacked (the policy still carries it) and
spreads the memory at the start of each sequence over its `T` steps:

| key | shape | holds |
|---|---|---|
| `<memory>_lean` | `[B, T, ceil(H * H / T)]` | share `t` of the memory that entered step 0 |
| `<memory>_lean_index` | `[B, T, 4]`, int64 | clock, offset, episode start, floats of memory |

Both are stored with the sequence, so buffers may shuffle sequences; `_lean_start.py` puts the
memory together again and refuses data from which that is impossible. Agents whose keys lie in a
branch of shape `[B, T, A]` have one memory each, in entries `[B, T, A, ...]`.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import Compose, TransformedEnv

from torchrl_shm.modules._branch_primer import BranchPrimer
from torchrl_shm.modules._branches import branch_of, expand_flags
from torchrl_shm.modules._lean_start import IS_INIT, SIZE
from torchrl_shm.modules._passes import roles_of
from torchrl_shm.torchrl_private import get_carrier, is_random, preallocates, put

State = Literal["lean", "stored", "zero"]
"""Where a sequence takes its first memory from; see `MemoryModule`."""

LEAN, LEAN_INDEX, ROLE = "_lean", "_lean_index", "_role"
"""Suffixes of the entries of lean rollouts, and of the one that all rollouts have."""

# a lane is one environment of a batch; its clock counts steps, starting well apart from others'
_LANE = 1 << 40


def suffixed(key: NestedKey, suffix: str) -> NestedKey:
    """Append to the last part of a key, so that `("agent", "memory")` keeps its branch."""
    *branch, leaf = (key,) if isinstance(key, str) else key
    return unravel_key((*branch, f"{leaf}{suffix}"))


class _Sequence(NamedTuple):
    """What the steps of a collected sequence carry, `[B, T, ...]`."""

    shares: Tensor
    indices: Tensor


class MemoryPrimer(BranchPrimer):
    """Starts a memory at zero on every reset and keeps it out of the stacked data.

    The agents of the branch in which the key lies have a memory each.

    Made by `MemoryModule.make_tensordict_primer`; collectors with
    `auto_register_policy_transforms=True` append it themselves.

    Args:
        memory_key: key of the memory.
        memory_shape: shape of one agent's memory.
        memory_dtype: dtype of the memory.
        choice_key: key of the random choices, or `None` for a memory without any.
        num_choices: number of values to draw from.
        is_init_key: key of the reset flags.
        state: `"lean"` stacks the memory at the start of each sequence, `"zero"` none, `"stored"`
            that of every step; see `MemoryModule`.
        owner: tells the primers of one module from those of others.

    Raises:
        ValueError: when the environment is used, it has another memory of this key.
    """

    def __init__(
        self,
        memory_key: NestedKey,
        memory_shape: tuple[int, ...],
        memory_dtype: torch.dtype = torch.float32,
        *,
        choice_key: NestedKey | None = None,
        num_choices: int | None = None,
        is_init_key: NestedKey = "is_init",
        state: State = "lean",
        owner: int | None = None,
    ) -> None:
        leaves: dict[NestedKey, Any] = {
            memory_key: Unbounded(torch.Size(memory_shape), dtype=memory_dtype)
        }
        # 0 where an episode starts, and in random first steps, where no policy writes it
        role = Unbounded(torch.Size(()), dtype=torch.int64)
        leaves[suffixed(memory_key, ROLE)] = role
        if choice_key is not None and num_choices is not None:
            # primed, so that estimators that read ("next", choice) find one
            leaves[choice_key] = Categorical(num_choices, shape=torch.Size(()), dtype=torch.int64)
        super().__init__(leaves, branch_of(memory_key))
        self.memory_key = memory_key
        self.role_key, self._lean_key, self._index_key = (
            suffixed(memory_key, x) for x in (ROLE, LEAN, LEAN_INDEX)
        )
        self._memory_shape = memory_shape
        self._memory_dtype = memory_dtype
        self.is_init_key = is_init_key
        self.state: State = state
        self._owner = owner
        self._draws = choice_key is not None
        self._registered: weakref.ref[Any] | None = None
        self._forget_collector()

    def _forget_collector(self) -> None:
        self._seen: weakref.ref[Any] | None = None
        self._steps = 0
        self._sequence: _Sequence | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the collector: a copy, in a worker for example, belongs to another one."""
        state = super().__getstate__() | {"_registered": None}
        return state | {"_seen": None, "_steps": 0, "_sequence": None}

    def clone(self) -> MemoryPrimer:
        """Copy the transform, for another environment of the same collector perhaps.

        A collector with `max_frames_per_traj` wraps its environment, and copies of the transforms,
        only after it has registered itself there.
        """
        other: MemoryPrimer = super().clone()
        collector = self.collector
        other._registered = None if collector is None else weakref.ref(collector)
        return other

    @property
    def collector(self) -> Any:
        """The collector that steps this environment, or `None`."""
        env: Any = self.container
        if env is None:
            return None
        collector: Any = env.collector
        if collector is None and self._registered is not None:
            collector = self._registered()
        # a copy of the environment is not the collector's
        return collector if getattr(collector, "env", env) is env else None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Give sampled sequences an empty memory, from which `BurnInTransform` starts.

        Called by a replay buffer that has this transform.

        Args:
            tensordict: sampled sequences of shape `[..., T]`.

        Returns:
            The same data, with zeros under the memory key.

        Raises:
            ValueError: the memory is that of lean rollouts, which start where they were collected.
        """
        if self.state == "lean":
            raise ValueError(
                f"{self.memory_key!r} is the memory of lean rollouts, whose start is in the data: "
                "drop the primer from the replay buffer, and for BurnInTransform use "
                "state='stored' or state='zero'"
            )
        if tensordict.get(self.memory_key, None) is None:
            branch = branch_of(self.memory_key)
            batch = tensordict.get(branch).shape if branch else tensordict.shape
            options: Any = {"dtype": self._memory_dtype, "device": tensordict.device}
            tensordict.set(self.memory_key, torch.zeros(*batch, *self._memory_shape, **options))
        return tensordict

    def _fit_to_env(self) -> None:
        env: Any = None if self._fitted else self.parent
        # the parent has the transforms before this one alone
        if env is not None and self.memory_key in env.full_state_spec.keys(True, True):
            self._refuse_another(env)
        super()._fit_to_env()

    def _refuse_another(self, env: Any) -> None:
        """Refuse what would share the memory, but for the same module that runs once more."""
        owners: set[int | None] = set()
        while isinstance(env, TransformedEnv):
            transform: Any = env.transform
            parts = transform if isinstance(transform, Compose) else [transform]
            same_key = (x for x in parts if getattr(x, "memory_key", None) == self.memory_key)
            owners.update(getattr(x, "_owner", None) for x in same_key)
            env = env.base_env
        if owners != {self._owner} or self._owner is None:
            raise ValueError(
                f"the environment has an entry {self.memory_key!r} already: give every memory of a "
                "policy another memory_key, and append the primer of each once"
            )
        if self._draws:
            raise ValueError(
                f"the memory {self.memory_key!r} runs twice in each step of the policy, with other "
                "random choices: run what its parts share once (torchrl.modules.ActorValueOperator)"
            )

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Declare the shares, whose width follows from the length of the collected sequences.

        The open dimension also tells collectors not to preallocate buffers, which would bring the
        per-step memories back.
        """
        spec: Any = super().transform_input_spec(input_spec)
        if self.state != "stored":
            state_spec = spec["full_state_spec"]
            shape = torch.Size((*self._agents(state_spec[self.memory_key]), -1))
            share = Unbounded(shape, dtype=self._memory_dtype, device=spec.device)
            state_spec[suffixed(self.memory_key, LEAN)] = share
        return spec

    def transform_fake_tensordict(self, fake_tensordict: TensorDictBase) -> TensorDictBase:
        """Drop from the fake data what `_post_step_mdp_hooks` drops from the real one."""
        if self.state != "stored":
            for place in (fake_tensordict, fake_tensordict.get("next")):
                place.pop(self.memory_key, None)
        return fake_tensordict

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        # called once per step: `tensordict` is stacked by the collector, `tensordict_` is what
        # the policy reads next
        root, came_next, collector = tensordict.batch_size, tensordict.get("next"), self.collector
        # the collector stacks its carrier, which is another object than `tensordict` where it
        # copies between the devices of policy and environment
        carrier = None if collector is None else get_carrier(collector)
        stacked = tensordict if carrier is None else carrier
        is_init, role = tensordict.get(self.is_init_key), tensordict.get(self.role_key, None)
        # TensorDictPrimer hands on what nobody has written, as in random first frames
        unwritten = False
        if role is not None and came_next.get(self.role_key, None) is role:
            unwritten = True
            role = roles_of(role, expand_flags(is_init, root, role.shape[len(root) :]))
            put(stacked, {self.role_key: role})
            put(came_next, {self.role_key: -role})
            put(tensordict_, {self.role_key: -role})
        if self.state == "stored":
            return tensordict, tensordict_
        memory = tensordict.pop(self.memory_key, None)
        came_next.pop(self.memory_key, None)
        if memory is None or collector is None:
            # outside of collectors sequences start with a reset and need no memory
            return tensordict, tensordict_
        self._meet(collector)
        if stacked is not tensordict:
            stacked.pop(self.memory_key, None)
        if self.state == "zero":
            return tensordict, tensordict_
        offset = self._steps % collector.frames_per_batch
        if offset == 0:
            self._sequence = self._start_sequence(memory, collector.frames_per_batch)
        assert self._sequence is not None
        share, index = (entry.select(-2, offset) for entry in self._sequence)
        agents = index.shape[len(root) : -1]
        index[..., IS_INIT] = expand_flags(is_init, root, agents)
        if unwritten and not is_random(collector):
            # the policy lacks the module, so what looks like an empty memory is none
            index[..., SIZE].neg_()
        put(stacked, {self._lean_key: share, self._index_key: index})
        # what came next is marked as such, and has all entries, so that the two can be stacked; the
        # collector takes it from the environment
        put(came_next, {self._lean_key: share, self._index_key: -index})
        self._steps += 1
        return tensordict, tensordict_

    def write_sequences(self, collector: Any, memory: Tensor, batch: TensorDictBase) -> None:
        """Write the lean entries of whole sequences, as the hook does step by step.

        Args:
            collector: what has collected the sequences.
            memory: the memory that entered the first step, `[B, *memory_shape]`.
            batch: the sequences `[B, T]`.

        Raises:
            RuntimeError: the collector cannot keep one memory for each sequence.
        """
        self._meet(collector)
        shares, indices = self._start_sequence(memory, batch.shape[-1])
        indices[..., IS_INIT] = batch.get(self.is_init_key).reshape(batch.shape)
        put(batch, {self._lean_key: shares, self._index_key: indices})
        put(batch.get("next"), {self._lean_key: shares, self._index_key: -indices})
        self._steps += batch.shape[-1]

    def _meet(self, collector: Any) -> None:
        """Start to count anew where the collector is another one than before."""
        if self._seen is None or self._seen() is not collector:
            self._check_collector(collector)
            self._forget_collector()
            self._seen = weakref.ref(collector)

    def _check_collector(self, collector: Any) -> None:
        if get_carrier(collector) is None:
            raise RuntimeError(
                f"{type(collector).__name__} collects no sequences, so it cannot "
                "keep one memory for each; use torchrl.collectors.Collector, or pass "
                "state='stored' to the memory module"
            )
        if preallocates(collector):
            raise RuntimeError(
                "the collector preallocates buffers (use_buffers=True), which would hold the "
                f"memory {self.memory_key!r} of every step; pass use_buffers=False to the "
                "collector, or state='stored' to the memory module"
            )

    def _start_sequence(self, memory: Tensor, rollout_length: int) -> _Sequence:
        batch = self._agents(memory)
        size = math.prod(self._memory_shape)
        width = math.ceil(size / rollout_length)
        flat = memory.reshape(*batch, size)
        padded = torch.nn.functional.pad(flat, (0, rollout_length * width - size))
        shares = padded.view(*batch, rollout_length, width)
        offset = torch.arange(rollout_length, device=memory.device)
        lanes = torch.arange(batch.numel(), device=memory.device).view(*batch, 1)
        clock = 1 + _LANE * lanes + self._steps + offset
        # the flags are written later
        columns = [clock, offset.expand_as(clock), clock, torch.full_like(clock, size)]
        return _Sequence(shares, torch.stack(columns, -1))

    def _agents(self, memory: Any) -> torch.Size:
        """Batch shape of a memory or of its spec."""
        return memory.shape[: memory.ndim - len(self._memory_shape)]

    def _check_batched_worker_compat(self) -> None:
        if self.state != "stored":
            raise RuntimeError(
                "a lean memory primer cannot live in the workers of a SerialEnv or ParallelEnv, "
                "which bypass its step hook: transform the batched environment instead, "
                "TransformedEnv(ParallelEnv(...), primer), or pass state='stored' to the memory "
                "module"
            )
