"""Recurrent passes of a cell over sequences: where they start, and what they run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_shm.modules._lean_start import came_next_in, rebuild_start, start_as_collected
from torchrl_shm.modules._passes import (
    concrete,
    refuse,
    refuse_broken,
    refuse_next,
    refuse_unknown_start,
)
from torchrl_shm.modules._resets import cut_at_resets, reset
from torchrl_shm.modules.base_cell import MemoryCell
from torchrl_shm.modules.lean import State
from torchrl_shm.ops.shm.dispatch import is_transformed
from torchrl_shm.torchrl_private import find_pass


@dataclass(frozen=True)
class Entries:
    """What data tell of sequences `[B, T]`; every agent is a sequence of its own.

    Attributes:
        x: inputs of shape `[B, T, D]`.
        is_init: bool of shape `[B, T]`.
        choice: the choices that acted, int64 of shape `[B, T]`, if there are any.
        memory: the memory that entered each step, `[B, T, *memory_shape]`, if the data have it.
        role: what the observations are, int64 of shape `[B, T]`, see `_passes.py`.
        lean: the two entries of lean rollouts, see `lean.py`.
    """

    x: Tensor
    is_init: Tensor
    choice: Tensor | None
    memory: Tensor | None
    role: Tensor | None
    lean: tuple[Tensor, Tensor] | None


class SequenceNames(NamedTuple):
    """Keys for error messages."""

    memory: NestedKey
    role: NestedKey
    lean: list[NestedKey]


class Run(NamedTuple):
    """What a pass gives.

    Attributes:
        y: outputs of shape `[B, T, O]`.
        memory: the memory after the last step, `[B, *memory_shape]`; `None` where it was not
            asked for and would have to be computed.
        choice: the choices that acted, `[B, T]`; `None` where the cell makes none.
    """

    y: Tensor
    memory: Tensor | None
    choice: Tensor | None


def run_entries(
    cell: MemoryCell,
    entries: Entries,
    state: State,
    burn_in: int,
    names: SequenceNames,
    *,
    flat: bool,
    want_last: bool,
) -> Run:
    """Run over sequences as the data tell that they start.

    Args:
        cell: the memory.
        entries: what the data tell.
        state: where a sequence takes its first memory from, see `MemoryModule`.
        burn_in: number of first steps through which no gradient flows.
        names: keys for error messages.
        flat: whether the data have no dimension but time.
        want_last: whether the memory after the last step is asked for.

    Returns:
        Outputs, last memory and choices.

    Raises:
        KeyError: sequences start in mid-episode, and the data do not tell from which memory.
        ValueError: next observations of a memory whose state does not allow them, parts of lean
            rollouts, or memories that no step has written.
    """
    x, memory, role = entries.x, entries.memory, entries.role
    if entries.lean is not None:
        # nearly always: then nothing else has to be looked at
        start = start_as_collected(*entries.lean, entries.is_init, cell.memory_shape)
        if start is not None:
            return run_sequence(cell, x, start, entries.is_init, entries.choice, burn_in)
    # data made by hand are trusted where their user runs the module: losses may run what came next
    unmarked = entries.lean is None and role is None
    caller = find_pass() if unmarked else None
    if role is None:
        role = torch.zeros_like(entries.is_init, dtype=torch.int64)
    came_next = role < 0
    if entries.lean is not None:
        came_next = came_next | came_next_in(entries.lean[1])
    refuse_next(came_next[:, 0], names.memory, state, flat=flat)
    # a pass over what came next is cut where the episodes of its steps began; single ones that an
    # estimator inserted, with the flag of the step before, are no reset
    is_next = came_next[:, :1]
    flags = entries.is_init
    is_init = torch.where(is_next, flags | (role == -1), flags & ~came_next)
    choice = _shift_choices(cell, entries.choice, is_next)

    if entries.lean is not None:
        # which also refuses parts of sequences, but not what came next among their steps
        shares, lean_index = entries.lean
        start = rebuild_start(shares, lean_index, is_init, cell.memory_shape)
        refuse_broken(role, came_next, is_init, names.memory)
        return run_sequence(cell, x, start, is_init, choice, burn_in)
    refuse_broken(role, came_next, is_init, names.memory)
    # with stored memories and no choices it makes no difference
    if caller == "unshifted" and (state != "stored" or memory is None or choice is not None):
        raise ValueError(
            f"an estimator with shifted=False runs the memory {names.memory!r} over next "
            f"observations, which the data do not tell from others ({names.role!r} is missing): "
            "pass shifted=True, or collect with the module in the policy"
        )
    _check_start(role, flags, memory, state, names, by_hand=unmarked and caller is None)
    if state == "lean" or (state == "stored" and memory is None):
        start = None if memory is None else memory[:, 0]
        return run_sequence(cell, x, start, is_init, choice, burn_in)
    if state == "zero":
        # one that the primer or a burn-in has put there; resets drop it, and each part has a
        # burn-in of its own
        memory = reset(memory, is_init) if memory is not None and entries.role is not None else None
        if not burn_in:
            start = None if memory is None else memory[:, 0]
            return run_sequence(cell, x, start, is_init, choice)
    y, choice = run_parts(cell, x, memory, is_init, choice, burn_in)
    if memory is None or not want_last:
        return Run(y, None, choice)
    return Run(y, run_last_part(cell, x, memory, is_init, choice), choice)


def _check_start(
    role: Tensor,
    is_init: Tensor,
    memory: Tensor | None,
    state: State,
    names: SequenceNames,
    *,
    by_hand: bool,
) -> None:
    """Refuse sequences `[B, T]` of which nobody knows how they start."""
    marked = (role[:, 0] != 0) | by_hand
    known = is_init[:, 0]
    if memory is not None or state == "zero":
        known = known | marked
    else:
        # slices are flagged where they start in mid-episode; what came next needs a memory
        known = known & (~is_init | (role >= 0) & (role <= 1)).all(1)
    refuse_unknown_start(~known, names.memory, state, [*names.lean, names.memory, names.role])
    if memory is not None and state != "stored":
        refuse(
            ~marked,
            f"the data hold a memory {names.memory!r} per step that no step of this module has "
            f"written ({names.role!r} is missing or 0), and state={state!r} does not read it: drop "
            "it, use state='stored', or run single steps outside of set_recurrent_mode(True)",
        )


def _shift_choices(cell: MemoryCell, choice: Tensor | None, is_next: Tensor) -> Tensor | None:
    """The choices that act on each observation: on what came next, those of the step after."""
    if choice is None or cell.num_choices is None:
        return choice
    flags = concrete(is_next)
    if flags is not None and not bool(flags.any()):
        return choice
    # nothing has acted on the last one yet; it gets the first choice, which acts on none of them.
    # A draw would take part in every compiled pass
    return torch.where(is_next, choice.roll(-1, 1), choice)


def run_sequence(
    cell: MemoryCell,
    x: Tensor,
    memory: Tensor | None,
    is_init: Tensor | None,
    choice: Tensor | None,
    burn_in: int = 0,
) -> Run:
    """Run over sequences, each of which starts from one memory.

    Args:
        cell: the memory.
        x: inputs of shape `[B, T, D]`.
        memory: memory that enters the first step, `[B, *memory_shape]`; `None` is empty.
        is_init: bool of shape `[B, T]`, where the memory is emptied; `None`: nowhere.
        choice: int64 of shape `[B, T]`, the choices that acted; `None` draws them.
        burn_in: number of first steps through which no gradient flows.

    Returns:
        Outputs, last memory and choices.
    """
    burn_in = min(burn_in, x.shape[1])
    if not burn_in:
        return Run(*cell(x, memory, is_init, choice))
    runs: list[Run] = []
    for steps, grad in ((slice(burn_in), False), (slice(burn_in, None), True)):
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            run = Run(
                *cell(
                    x[:, steps],
                    memory,
                    None if is_init is None else is_init[:, steps],
                    None if choice is None else choice[:, steps],
                )
            )
        memory = run.memory
        runs.append(run)
    warm, run = runs
    if run.choice is not None and warm.choice is not None:
        choice = torch.cat([warm.choice, run.choice], 1)
    return Run(torch.cat([warm.y, run.y], 1), run.memory, choice)


def run_parts(
    cell: MemoryCell,
    x: Tensor,
    memory: Tensor | None,
    is_init: Tensor,
    choice: Tensor | None,
    burn_in: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Run each part between two flags as a sequence of its own, padded to the longest.

    Args:
        cell: the memory.
        x: inputs of shape `[B, T, D]`.
        memory: memory of each step, `[B, T, *memory_shape]`, of which those at the first steps of
            the parts are used; `None`: every part starts empty.
        is_init: bool of shape `[B, T]`, where a part starts.
        choice: int64 of shape `[B, T]`, the choices that acted; `None` draws them.
        burn_in: number of first steps of each part through which no gradient flows.

    Returns:
        Outputs `[B, T, O]` and the choices that acted `[B, T]`, `None` where the cell makes none.

    Raises:
        RuntimeError: under `torch.vmap` over the flags, whose parts would differ in number.
    """
    if is_transformed(is_init):
        raise RuntimeError(
            "torch.vmap cannot cut the sequences of each sample at its own resets: pass "
            "deactivate_vmap=True to the value estimator or loss, or shifted=True to the "
            "estimator, or run torchrl_shm.unroll(module, rollouts) before the loss"
        )
    first, part, step = cut_at_resets(is_init)
    shape = (len(first), int(step.max()) + 1)

    def split(steps: Tensor) -> Tensor:
        padded = steps.new_zeros(*shape, *steps.shape[2:])
        return padded.index_put((part, step), steps.flatten(0, 1))

    start = None if memory is None else memory.flatten(0, 1)[first]
    padded_choice = None if choice is None else split(choice)
    y, _, padded_choice = run_sequence(cell, split(x), start, None, padded_choice, burn_in)
    if padded_choice is not None:
        choice = padded_choice[part, step].unflatten(0, x.shape[:2])
    return y[part, step].unflatten(0, x.shape[:2]), choice


def run_last_part(
    cell: MemoryCell, x: Tensor, memory: Tensor, is_init: Tensor, choice: Tensor | None
) -> Tensor:
    """The memory after each sequence, which starts anew from what is stored at its last flag.

    Args:
        cell: the memory.
        x: inputs of shape `[B, T, D]`.
        memory: memory of each step, `[B, T, *memory_shape]`.
        is_init: bool of shape `[B, T]`, where a part starts.
        choice: int64 of shape `[B, T]`, the choices that acted; `None` draws them.

    Returns:
        Memory of shape `[B, *memory_shape]`.
    """
    step = torch.arange(x.shape[1], device=x.device)
    starts = torch.where(is_init, step, 0).amax(1)
    last = torch.empty_like(memory[:, 0])
    for start in starts.unique().tolist():
        rows = starts == start
        acted = None if choice is None else choice[rows, start:]
        last[rows] = cell(x[rows, start:], memory[rows, start], None, acted)[1]
    return last
