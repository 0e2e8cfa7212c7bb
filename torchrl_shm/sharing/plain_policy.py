"""A policy on plain tensors, one step at a time, for loops without TorchRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_shm.modules.measure import primed_specs
from torchrl_shm.networks import EnvSpecs


class PlainPolicy(nn.Module):
    """Takes observations and a memory, gives actions and the next memory.

    Step by step it acts as the policy does in an environment of TorchRL. Memories that draw random
    numbers, as `shm` does, use torch's default generator: seed it to repeat their actions. No
    gradients are kept; to train, use `module`.

    Args:
        module: the policy on TensorDicts; it remains usable as `policy.module`, for example with
            `torchrl_shm.training.evaluate`.
        specs: what the policy reads and does. `policy.specs.action_spec_unbatched` has the bounds
            of continuous actions, which are not clipped.

    Examples:
        >>> import torch
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import EnvSpecs, make_actor_critic
        >>> from torchrl_shm.sharing import PlainPolicy
        >>> specs = EnvSpecs.of(WindEnv(4), ["observation"])
        >>> operator = make_actor_critic(specs, SHMModule)
        >>> policy = PlainPolicy(operator.get_policy_operator(), specs)
        >>> memory = policy.initial_memory(batch_size=3)
        >>> for step in range(5):
        ...     action, memory = policy(torch.zeros(3, 2), memory)
        >>> action.shape
        torch.Size([3, 2])
    """

    def __init__(self, module: TensorDictModuleBase, specs: EnvSpecs) -> None:
        super().__init__()
        self.module = module
        self.specs = specs
        self._memory_specs = _memory_specs(module)

    @property
    def device(self) -> torch.device:
        """Device of the parameters, on which observations have to be."""
        return next(self.parameters()).device

    def initial_memory(self, batch_size: int) -> dict[str, Tensor]:
        """Make the memory with which an episode starts.

        Args:
            batch_size: number of agents, B.

        Returns:
            Tensors `[B, ...]` for the first step; none for a policy without a memory.

        Raises:
            ValueError: `batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        return {
            key: torch.zeros(batch_size, *spec.shape, dtype=spec.dtype, device=self.device)
            for key, spec in self._memory_specs.items()
        }

    @torch.no_grad()
    def forward(
        self,
        observation: Tensor | Mapping[Any, Any],
        memory: Mapping[str, Tensor],
        is_init: Tensor | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step.

        Args:
            observation: `[B, ...]` by key, in the shapes and dtypes of the specs; further entries
                are ignored. A nested entry, `("arm", "eye")`, stands under this key or in a
                dictionary of its own. A tensor alone will do where the policy reads a single
                entry.
            memory: what `initial_memory` or the previous step returned.
            is_init: bool of shape `[B]`; where true, an episode starts, with an empty memory.
            deterministic: take the mean, or the most likely action; else draw it.

        Returns:
            The action, `[B, A]` if it is continuous or several indices and `[B]` if it is one
            index, and the next memory.

        Raises:
            KeyError: an entry of the observation or of the memory is missing.
            TypeError: the policy reads several entries, or a dtype differs.
            ValueError: a shape or a device differs.
            FloatingPointError: an observation or the next memory is not finite.
        """
        inputs = self._read(observation)
        batch_size = len(inputs[self.specs.policy_keys[0]])
        if is_init is None:
            is_init = torch.zeros(batch_size, dtype=torch.bool, device=self.device)
        self._check("is_init", is_init, (), torch.bool, batch_size)
        for key, spec in self._memory_specs.items():
            if key not in memory:
                raise KeyError(
                    f"memory has no {key!r}, only {sorted(memory)}; start with "
                    "policy.initial_memory(batch_size) and pass on what the last step returned"
                )
            self._check(f"memory[{key!r}]", memory[key], spec.shape, spec.dtype, batch_size)
        data = TensorDict({key: memory[key] for key in self._memory_specs}, [batch_size])
        for key, x in inputs.items():
            data.set(key, x)
        data["is_init"] = is_init.unsqueeze(-1)
        mode = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        # this is a single step, whatever mode the caller has set
        with set_exploration_type(mode), set_recurrent_mode(False):
            data = self.module(data)
        carried = {key: data["next", key] for key in self._memory_specs}
        # whose values are not known while the code is traced
        if not torch.compiler.is_compiling():
            _refuse_overflow(inputs, carried)
        return data["action"], carried

    def _read(self, observation: Tensor | Mapping[Any, Any]) -> dict[Any, Tensor]:
        """The entries of the specs, checked."""
        keys = list(self.specs.policy_keys)
        entries: Any = observation
        if isinstance(observation, Tensor) and len(keys) == 1:
            entries = {keys[0]: observation}
        if not isinstance(entries, Mapping):
            raise TypeError(
                f"the policy reads {keys}: pass a dictionary of tensors, not a "
                f"{type(observation).__name__}"
            )
        found = {key: _look_up(entries, key) for key in keys}
        missing = [key for key, x in found.items() if x is None]
        if missing:
            raise KeyError(
                f"{missing} are missing: the policy reads {keys}, got {list(observation)}"
            )
        batch_size: int | None = None
        for key in keys:
            spec = self.specs.observation_spec_unbatched[key]
            _refuse_index(key, found[key], spec)
            self._check(f"observation {key!r}", found[key], spec.shape, spec.dtype, batch_size)
            # all entries have the batch size of the first
            batch_size = len(found[key])
        return found

    def _check(
        self,
        name: str,
        x: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        batch_size: int | None,
    ) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; make a tensor of it, torch.tensor(x)")
        if x.dtype != dtype:
            raise TypeError(f"{name} is {x.dtype}, expected {dtype}; convert it with .to({dtype})")
        rows = "B" if batch_size is None else batch_size
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape or rows not in ("B", len(x)):
            raise ValueError(
                f"{name} is {list(x.shape)}, expected [{', '.join(map(str, (rows, *shape)))}], "
                "with the batch first; x.unsqueeze(0) makes a batch of one agent"
            )
        if x.device != self.device:
            raise ValueError(
                f"{name} is on {x.device} but the policy on {self.device}: move it with "
                f".to({str(self.device)!r})"
            )


def _refuse_index(key: NestedKey, x: Any, spec: TensorSpec) -> None:
    """Raise where an index was given, as of a `Discrete` space, and a row of numbers is read."""
    if not isinstance(x, Tensor) or len(spec.shape) != 1 or not spec.dtype.is_floating_point:
        return
    count = spec.shape[0]
    is_index = x.numel() == 1 or not x.dtype.is_floating_point
    is_short = x.ndim == 0 or x.shape[1:] in ((), (1,))
    if count > 1 and is_index and is_short and x.shape != spec.shape:
        error = ValueError if x.dtype.is_floating_point else TypeError
        raise error(
            f"observation {key!r} is {x.dtype} of shape {list(x.shape)}, expected {spec.dtype} of "
            f"shape [B, {count}]; an index, as of Discrete({count}), is one-hot here: "
            f"torch.nn.functional.one_hot(x, {count}).float(), where x is int64 of shape [B]"
        )


def _refuse_overflow(inputs: Mapping[Any, Tensor], carried: Mapping[str, Tensor]) -> None:
    """Raise where a memory will stay without meaning, or an observation has none."""
    # in this order, for what a policy reads decides what it remembers
    found = {f"observation {key!r}": x for key, x in inputs.items()}
    found |= {f"memory[{key!r}]": x for key, x in carried.items()}
    rows = {name: x.isfinite().reshape(len(x), -1).all(1) for name, x in found.items()}
    # this waits for the device once
    if bool(torch.stack([*rows.values()]).all()):
        return
    name, good = next((name, x) for name, x in rows.items() if not bool(x.all()))
    advice = (
        "start new episodes there, with is_init and the memory of the step before; where the "
        "memory overflows in long episodes, train with memory.clamp=100"
        if name.startswith("memory")
        else "the policy cannot act on it"
    )
    bad = (~good).nonzero()[:, 0].tolist()
    raise FloatingPointError(f"{name} is not finite in rows {bad}: {advice}")


def _look_up(entries: Mapping[Any, Any], key: NestedKey) -> Any:
    """An entry, nested or under the key of a nested one; `None` where there is none."""
    # in a TensorDict, nested keys are those of what is nested
    if isinstance(key, str) or (isinstance(entries, dict) and key in entries):
        return entries.get(key, None)
    below: Any = entries
    for part in key:
        below = below.get(part, None) if isinstance(below, Mapping) else None
    return below


def _memory_specs(module: TensorDictModuleBase) -> dict[str, TensorSpec]:
    """Specs of what a policy carries from step to step."""
    return {
        key: spec
        for key, spec in primed_specs(module).items()
        # random choices are primed, too, but are not carried to the next step
        if unravel_key(("next", key)) in module.out_keys
    }
