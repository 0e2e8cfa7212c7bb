"""TorchRL's contract for recurrent TensorDict modules, implemented once for all memories."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key_list
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.envs import TensorDictPrimer
from torchrl.envs.transforms import BurnInTransform
from torchrl.modules import canonicalize_rnn_subset, recurrent_mode
from torchrl.objectives import add_random_module

from torchrl_shm.checks import check_option
from torchrl_shm.modules._branches import (
    agents_of,
    branch_of,
    check_batches,
    check_branches,
    expand_flags,
    from_sequences,
    to_sequences,
)
from torchrl_shm.modules._passes import ADVICE, concrete, roles_of
from torchrl_shm.modules._resets import is_cheap, reset
from torchrl_shm.modules._sequence import Entries, SequenceNames, run_entries
from torchrl_shm.modules.base_cell import MemoryCell
from torchrl_shm.modules.lean import (
    LEAN,
    LEAN_INDEX,
    ROLE,
    MemoryPrimer,
    State,
    suffixed,
)
from torchrl_shm.torchrl_private import find_caller


class MemoryModule(TensorDictModuleBase):
    """Wraps a memory cell in TorchRL's contract for recurrent modules.

    **Step mode** (the default; collectors): reads one step, of any batch shape. The memory that
    enters is zero where `is_init` is true. Writes the output, `("next", memory)`, and, for cells
    that make random choices, the new `choice`.

    **Recurrent mode** (losses, and under `torchrl.modules.set_recurrent_mode(True)`): the last
    batch dimension is time; 1-D data are one sequence. A `choice` in the data is used again,
    so the loss sees the gates that acted. `("next", memory)` is not written: nothing reads it, and
    it would hold a memory per step.

    `state` says where a sequence takes its first memory from:

    - `"lean"`: collectors stack one memory per sequence of `T` steps instead of one per step, in
      the entries `<memory>_lean` `[B, T, ceil(N / T)]` (`N` floats of memory) and
      `<memory>_lean_index` `[B, T, 4]` (int64, see `MemoryPrimer`). Sequences
      may be stored, shuffled and batched; parts of them are refused.
    - `"stored"`: every step's memory is stacked, as with `GRUModule`. Each sequence, and each part
      of it from an `is_init` on (`SliceSampler` sets it), starts from the memory stored there.
    - `"zero"`: nothing is stacked; each sequence and each such part starts empty, unless the data
      hold a memory (as after `BurnInTransform`). `burn_in` steps at its start may warm it up.

    Where `is_init` is true the memory that enters the step is zero, also at the first step. With
    `state="stored"` it is the stored one, which the primer has set to zero on resets of the
    environment.

    Steps also write `<memory>_role` (int64: `n` at the `n`-th step of an episode, under `"next"`
    `-n`), by which recurrent mode knows sequences that start in mid-episode from next observations
    and from sequences that lack steps. Next observations can be run as sequences of their own with
    `state="stored"` alone; elsewhere they are refused, and `unroll` computes them. Sequences made
    by hand need the role in losses where they do not start with a reset.

    `torchrl.envs.BurnInTransform` refreshes the memory with `state="stored"`; with `"zero"` append
    the primer to the buffer before it, which gives sampled sequences the empty memory from which
    the burn-in starts.

    **Several agents.** With keys in a branch of shape `[B, A]`, such as `("agents", "observation")`
    and `("agents", "memory")`, each agent has a memory and choices of its own. Time is still the
    last dimension of the root. Flags at the root reset all agents of an environment, flags in the
    branch one.

    Args:
        cell: the memory on plain tensors.
        in_key: key of the input. Exclusive with `in_keys`.
        in_keys: `[input, memory]`.
        memory_key: key of the memory, where `in_keys` does not name it.
        out_key: key of the output. Exclusive with `out_keys`.
        out_keys: `[output, ("next", memory)]`.
        choice_key: key of the random choices. Default: `"choice"`, for `SHM` `"theta_index"`,
            beside the memory; appended to the memory key where its last part is not `"memory"`.
        is_init_key: key of the reset flags, written by `torchrl.envs.InitTracker`.
        state: `"lean"`, `"stored"` or `"zero"`, see above.
        burn_in: number of steps at the start of each sequence (with `state="stored"` or `"zero"`
            of each part) through which no gradient flows; exclude them from the loss.
        default_recurrent_mode: mode outside of `set_recurrent_mode`; `None` means step mode.

    Raises:
        ValueError: options or keys do not fit.
        TypeError: `cell` is not a memory cell.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm import SHM, MemoryModule
        >>> module = MemoryModule(SHM(5, 3), in_key="observation", out_key="features")
        >>> data = TensorDict({"observation": torch.randn(4, 5)}, [4])
        >>> data["is_init"] = torch.ones(4, 1, dtype=torch.bool)
        >>> module(data)["next", "memory"].shape
        torch.Size([4, 24, 24])
    """

    def __init__(
        self,
        cell: MemoryCell,
        *,
        in_key: NestedKey | None = None,
        in_keys: list[NestedKey] | None = None,
        memory_key: NestedKey = "memory",
        out_key: NestedKey | None = None,
        out_keys: list[NestedKey] | None = None,
        choice_key: NestedKey | None = None,
        is_init_key: NestedKey = "is_init",
        state: State = "lean",
        burn_in: int = 0,
        default_recurrent_mode: bool | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module) or not isinstance(cell, MemoryCell):
            raise TypeError(
                f"cell is a {type(cell).__name__}; it must be an nn.Module with memory_shape, "
                "num_choices, forward and step, see torchrl_shm.modules.MemoryCell"
            )
        if state == "row":
            raise ValueError("state='row' is now state='lean'")
        check_option("state", state, State)
        if burn_in < 0:
            raise ValueError(f"burn_in={burn_in} must not be negative")
        self.cell = cell
        self.state: State = state
        self.burn_in = burn_in
        self._recurrent_mode = default_recurrent_mode

        in_keys = _one_of("in_key", in_key, in_keys, [memory_key])
        out_keys = _one_of("out_key", out_key, out_keys, [("next", in_keys[1])])
        self.in_key, self.memory_key = in_keys
        self.out_key, self.next_memory_key = out_keys
        if self.next_memory_key != unravel_key(("next", self.memory_key)):
            raise ValueError(
                f"out_keys[1]={self.next_memory_key!r} must be ('next', in_keys[1]) = "
                f"{unravel_key(('next', self.memory_key))!r}, so that the memory is carried"
            )
        check_branches(self.in_key, self.memory_key)
        self.is_init_key = unravel_key(is_init_key)
        self.choice_key: NestedKey | None = None
        if cell.num_choices is not None:
            if choice_key is None:
                name = getattr(cell, "choice_name", "choice")
                branch = branch_of(self.memory_key)
                default = self.memory_key == unravel_key((*branch, "memory"))
                choice_key = (*branch, name) if default else suffixed(self.memory_key, f"_{name}")
            self.choice_key = unravel_key(choice_key)

        # what the data say of the start of a sequence, see `_passes.py`
        self.role_key = suffixed(self.memory_key, ROLE)
        self._next_role_key = unravel_key(("next", self.role_key))
        self._lean_keys: list[NestedKey] = []
        if state == "lean":
            self._lean_keys = [suffixed(self.memory_key, suffix) for suffix in (LEAN, LEAN_INDEX)]
        choices: list[NestedKey] = [] if self.choice_key is None else [self.choice_key]
        inputs = [self.in_key, self.memory_key, self.is_init_key]
        # all that recurrent mode may read: value estimators select exactly the in_keys
        self.in_keys: Any = [*inputs, *choices, self.role_key, *self._lean_keys]
        # named, so that collectors with a policy on another device copy it back
        self.out_keys: Any = [self.out_key, self.next_memory_key, *choices, self.role_key]

    @property
    def recurrent_mode(self) -> bool:
        """Whether `forward` reads whole sequences: the global mode, else the module's default."""
        mode = recurrent_mode()
        return bool(self._recurrent_mode) if mode is None else bool(mode)

    @property
    def canonical_keys(self) -> list[NestedKey]:
        """Keys whose layout matters, for `torchrl.modules.canonicalize_rnn_subset`."""
        return [*self.in_keys, *self.out_keys]

    @property
    def _dispatch_keys(self) -> list[NestedKey]:
        # nobody asks for a role, and recurrent mode does not write the next memory
        keys = [self.out_key] if self.recurrent_mode else [self.out_key, self.next_memory_key]
        return keys if self.choice_key is None else [*keys, self.choice_key]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Make the environment transform that starts the memory at zero on every reset.

        `Collector(auto_register_policy_transforms=True)`, `EnvBase(policy=...)` and
        `torchrl.modules.utils.get_primers_from_module` call this themselves.

        Returns:
            A `MemoryPrimer`, one `TensorDictPrimer` for memory and `choice`.
        """
        return MemoryPrimer(
            self.memory_key,
            self.cell.memory_shape,
            self._memory_dtype,
            choice_key=self.choice_key,
            num_choices=self.cell.num_choices,
            is_init_key=self.is_init_key,
            state=self.state,
            owner=id(self),
        )

    @dispatch(dest="_dispatch_keys")
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run one step or, in recurrent mode, whole sequences; see the class.

        Args:
            tensordict: data of shape `[...]` in step mode, `[..., T]` in recurrent mode.

        Returns:
            The same TensorDict with the `out_keys` written.

        Raises:
            KeyError: input, reset flags or memory are missing.
            ValueError: the data do not fit the mode, the memory or the device.
            TypeError: the input has another dtype than the parameters, outside of autocast, or the
                reset flags are not bool.
            IndexError: a `choice` lies outside of the table.
        """
        self.run(tensordict)
        return tensordict

    def run(self, tensordict: Any) -> None:
        """Do the same with anything that has `get`, `set`, `keys` and `shape`.

        Args:
            tensordict: entries by key; see `forward`, also for what it raises.
        """
        if self.recurrent_mode:
            self._run_sequences(tensordict)
        else:
            self._run_step(tensordict)

    def _run_step(self, tensordict: Any) -> None:
        x, is_init = self._read(tensordict)
        memory = tensordict.get(self.memory_key, None)
        if memory is None:
            if not bool(is_init.all()):
                raise KeyError(
                    f"memory key {self.memory_key!r} is missing in the middle of an episode, so "
                    "the past would be forgotten. In a collector pass "
                    "auto_register_policy_transforms=True, elsewhere append "
                    "module.make_tensordict_primer() to the environment. If these data are whole "
                    "sequences, wrap the call in torchrl.modules.set_recurrent_mode(True)"
                )
        else:
            batch = memory.shape[: memory.ndim - len(self.cell.memory_shape)]
            check_batches(self.in_key, is_init.shape, self.memory_key, batch)
            memory = reset(memory, is_init)
        # a choice in the data is that of an earlier step: always draw
        y, memory, choice = self.cell.step(x, memory)
        tensordict.set(self.out_key, y)
        tensordict.set(self.next_memory_key, memory)
        if self.choice_key is not None:
            tensordict.set(self.choice_key, choice)
        role = roles_of(tensordict.get(self.role_key, None), is_init)
        tensordict.set(self.role_key, role)
        tensordict.set(self._next_role_key, -role)

    def _run_sequences(self, tensordict: Any) -> None:
        shape = tensordict.shape
        if not shape:
            raise ValueError(
                "recurrent mode reads sequences: the last dimension of the TensorDict is time, "
                "but it has none. Leave set_recurrent_mode(True) for single steps"
            )
        # one by one: a lazy stack, such as a rollout, may lack an entry at some steps
        found = {key: tensordict.get(key, None) for key in self.in_keys}
        present: Any = {key: value for key, value in found.items() if value is not None}
        x, is_init = self._read(tensordict)
        agents = agents_of(self.in_key, x, shape)
        present[self.is_init_key] = is_init
        data: Any = {key: to_sequences(key, x, shape, agents) for key, x in present.items()}
        choice = None if self.choice_key is None else data.get(self.choice_key)
        if choice is not None and not is_cheap(choice):
            # on the CPU the table refuses it
            self._check_choice(choice)
        memory = data.get(self.memory_key)
        lean: Any = tuple(data.get(key) for key in self._lean_keys)
        entries = Entries(
            x=data[self.in_key],
            is_init=data[self.is_init_key],
            choice=choice,
            memory=memory,
            role=data.get(self.role_key),
            lean=lean if lean and all(entry is not None for entry in lean) else None,
        )
        names = SequenceNames(self.memory_key, self.role_key, self._lean_keys)
        # a loss would not read the memory after the last step
        burns_in = not torch.is_grad_enabled() and find_caller(BurnInTransform.forward)
        if burns_in and memory is None:
            self._refuse_burn_in()
        try:
            run = run_entries(
                self.cell, entries, self.state, self.burn_in, names,
                flat=len(shape) == 1, want_last=burns_in,
            )  # fmt: skip
        except IndexError:
            self._check_choice(choice)
            raise
        tensordict.set(self.out_key, from_sequences(run.y, shape, agents))
        if self.choice_key is not None and run.choice is not None:
            tensordict.set(self.choice_key, from_sequences(run.choice, shape, agents))
        if burns_in and run.memory is not None:
            after = run.memory.unsqueeze(1).expand(-1, shape[-1], *run.memory.shape[1:])
            done = tensordict.get(("next", "done"), None)
            if done is not None:
                # the step after the burn-in starts an episode
                flags = expand_flags(done, shape, agents)
                after = reset(after, to_sequences("done", flags, shape, agents))
            tensordict.set(self.next_memory_key, from_sequences(after, shape, agents))

    def _refuse_burn_in(self) -> None:
        if self.state == "lean":
            raise ValueError(
                "BurnInTransform cuts sequences into parts, which lean rollouts do not allow: make "
                "the memory with state='stored' or state='zero'"
            )
        raise KeyError(
            f"BurnInTransform needs {self.memory_key!r} in the sampled data: "
            + (
                "append module.make_tensordict_primer() to the replay buffer before it"
                if self.state == "zero"
                else "collect with the module in the policy and "
                "auto_register_policy_transforms=True"
            )
        )

    def canonicalize(self, data: TensorDictBase, *, inplace: bool = False) -> TensorDictBase:
        """Give the entries that the module reads and writes a plain layout in memory.

        Args:
            data: data of any shape.
            inplace: change `data` instead of a shallow copy.

        Returns:
            The data, see `torchrl.modules.GRUModule.canonicalize`.
        """
        modules: Any = [self]
        return canonicalize_rnn_subset(data, modules, inplace=inplace)

    def _read(self, tensordict: Any) -> tuple[Tensor, Tensor]:
        """The input and the flags, one per step."""
        x = tensordict.get(self.in_key, None)
        if x is None:
            raise KeyError(
                f"input key {self.in_key!r} is missing; the data have "
                f"{sorted(map(str, tensordict.keys()))}"
            )
        parameter = next(self.cell.parameters(), None)
        if parameter is not None and parameter.device != x.device:
            raise ValueError(
                f"{self.in_key!r} is on {x.device} but the module on {parameter.device}: move "
                f"the data with .to({str(parameter.device)!r})"
            )
        if (
            parameter is not None
            and parameter.is_floating_point()
            and parameter.dtype != x.dtype
            and not torch.is_autocast_enabled(x.device.type)
        ):
            raise TypeError(
                f"{self.in_key!r} is {x.dtype} but the module {parameter.dtype}: append "
                "torchrl.envs.DoubleToFloat() to the environment, convert the data with "
                f".to({parameter.dtype}), or make the module with dtype={x.dtype}"
            )
        is_init = tensordict.get(self.is_init_key, None)
        if is_init is None:
            beside = unravel_key((*branch_of(self.in_key), "is_init"))
            advice = (
                "append torchrl.envs.InitTracker() to the environment, or pass "
                "auto_register_policy_transforms=True to the collector"
            )
            if tensordict.get(beside, None) is not None:
                advice = f"the data have one per agent, pass is_init_key={beside!r} to the module"
            raise KeyError(
                f"reset flags {self.is_init_key!r} are missing, so episodes would run into each "
                f"other: {advice}. If a loss dropped them: {ADVICE}"
            )
        if is_init.dtype != torch.bool:
            raise TypeError(f"{self.is_init_key!r} is {is_init.dtype}, expected torch.bool")
        agents = agents_of(self.in_key, x, tensordict.shape)
        return x, expand_flags(is_init, tensordict.shape, agents)

    def _check_choice(self, index: Tensor | None) -> None:
        num_choices = self.cell.num_choices
        values = None if index is None else concrete(index)
        if values is None or not values.numel():
            return
        assert num_choices is not None
        low, high = (int(bound) for bound in values.aminmax())
        if low < 0 or high >= num_choices:
            raise IndexError(
                f"{self.choice_key!r} holds {low if low < 0 else high}, outside of the "
                f"choices 0..{num_choices - 1}: the data come from a module with another number "
                "of choices, of SHM num_theta"
            )

    @property
    def _memory_dtype(self) -> torch.dtype:
        parameter: Any = next(self.cell.parameters(), None)
        double = parameter is not None and parameter.dtype == torch.float64
        return torch.float64 if double else torch.float32


def _one_of(
    name: str,
    key: NestedKey | None,
    keys: list[NestedKey] | None,
    default: list[NestedKey],
) -> list[NestedKey]:
    """Resolve `in_key` or `in_keys` as TorchRL's modules do."""
    if (key is None) == (keys is None):
        raise ValueError(f"pass {name} or {name}s, one of them; got {key!r} and {keys!r}")
    resolved: list[NestedKey] = unravel_key_list([key, *default] if keys is None else list(keys))
    if len(resolved) == 3 and resolved[-1] == "is_init":
        # TorchRL's modules take it, too; here it has an argument of its own
        resolved = resolved[:2]
    if len(resolved) != 2:
        raise ValueError(f"{name}s={keys!r} must have two keys, of the value and of the memory")
    return resolved


# losses and estimators that use vmap must allow random choices of the memory
add_random_module(MemoryModule)
