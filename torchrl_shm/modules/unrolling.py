"""One recurrent pass that gives features of every observation and of what came next."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key, unravel_key_list
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import set_recurrent_mode

from torchrl_shm.modules._passes import refuse


def unroll(
    module: nn.Module,
    rollouts: TensorDictBase,
    *,
    done_key: NestedKey = "done",
    detach_next: bool = True,
) -> TensorDictBase:
    """Run a memory over sequences, with the observations that came next in their places.

    Losses that need the value of the next observation (SAC, DQN, DDPG, TD3, IQL, value estimators
    that are not shifted) run their networks a second time, over `"next"`. For a memory that second
    run is wrong: it finds no reset flags there, no first observation of an episode, and the random
    choices of the step before. So run the memory here, once, and give the loss the heads, which
    are feed-forward modules that read `out_key`. The memory's parameters are then not among those
    of the loss: give them to the optimizer, too.

    The pass takes the `T` observations of each sequence in order and, after each end of an episode
    and after the last step, the observation that came next: at most
    `T + 1 + (ends of episodes in the fullest sequence)` steps, in recurrent mode whatever the
    global mode is. Gradients flow through the outputs at the root, which is why they must not be
    stored or detached; `DDPGLoss` detaches its data (take `TD3Loss`).

    Args:
        module: a memory (`MemoryModule`, TorchRL's `GRUModule`, ...), or an actor, a critic or
            both: a `TensorDictSequential` with memories in it, of which the memories are run and
            the modules that feed them. Nothing is sampled.
        rollouts: data of shape `[..., T]` as collected, with `is_init`, the inputs of the module
            and the same inputs under `"next"`. For the start of each sequence see `MemoryModule`.
        done_key: key of the flag under `"next"` that ends an episode; where it is missing, resets
            tell.
        detach_next: whether no gradient flows through the outputs at `"next"`. Losses make targets
            of them, and some of TorchRL's would send their gradient through the target.

    Returns:
        A shallow copy of `rollouts`. Each output `y` of the modules that were run stands at `y`
        and at `("next", y)`, both `[..., T, features]`; so do the random choices of a memory.
        Those for an observation on which nothing has acted are drawn.

    Raises:
        KeyError: an input, what came next, or the reset flags are missing.
        ValueError: the module has no memory, the data have no time or `"next"` is several steps
            later, or the agents of one environment are reset at different steps.

    Examples:
        >>> import torch
        >>> from torchrl.collectors import Collector
        >>> from torchrl.modules import QValueActor
        >>> from torchrl.objectives import DQNLoss
        >>> from tensordict.nn import TensorDictSequential
        >>> from torchrl_shm import SHMModule, unroll
        >>> from torchrl_shm.envs.popgym import RepeatPreviousEnv
        >>> env = RepeatPreviousEnv(4)
        >>> size, actions = env.observation_spec["observation"].shape[-1], env.action_spec_unbatched
        >>> memory = SHMModule(size, 16, in_key="observation", out_key="features")
        >>> head = QValueActor(torch.nn.Linear(16, actions.n), in_keys=["features"], spec=actions)
        >>> policy = TensorDictSequential(memory, head)
        >>> steps = {"frames_per_batch": 4 * 20, "total_frames": 4 * 20}
        >>> collector = Collector(env, policy, auto_register_policy_transforms=True, **steps)
        >>> loss = DQNLoss(head, delay_value=False, action_space="categorical")
        >>> for rollouts in collector:
        ...     terms = loss(unroll(memory, rollouts))
        >>> terms["loss"].shape
        torch.Size([])
    """
    shape = rollouts.shape
    if not shape:
        raise ValueError("the last dimension of the rollouts is time, but they have none")
    network, memories = _find_memories(module)
    data = rollouts.reshape(shape[:-1].numel(), shape[-1])
    flags = {_is_init_key(memory) for memory in memories}
    slots = _Slots(_find_ends(data, flags, done_key))
    root, following = _inputs(network, memories, flags, data)
    _refuse_later(data, memories)
    sequence = slots.place(root, following)
    for key in flags:
        sequence.set(key, sequence.get(key) | slots.after_last(sequence.get(key).ndim))
    with set_recurrent_mode(True):
        for part in network:
            sequence = part(sequence)

    result = rollouts.copy()
    for key in _outputs(network, memories):
        here, there = slots.take(sequence.get(key))
        there = there.detach() if detach_next else there
        result.set(key, here.reshape(*shape, *here.shape[2:]))
        result.set(unravel_key(("next", key)), there.reshape(*shape, *there.shape[2:]))
    return result


class _Slots:
    """Where the observations stand in the longer sequence.

    Args:
        ends: bool `[B, T]`, true where the observation that came next has to be inserted.
    """

    def __init__(self, ends: Tensor) -> None:
        batch, steps = ends.shape
        time = torch.arange(steps, device=ends.device).expand(batch, -1)
        self.rows = torch.arange(batch, device=ends.device).unsqueeze(1)
        self.root = time + ends.long().cumsum(1) - ends.long()
        self.num_slots = steps + int(ends.sum(1).max())
        # nothing is inserted but behind the last step, so nothing has to be looked up
        self.only_last = self.num_slots == steps + 1
        self.ends, self.time = ends, time

    def place(self, root: TensorDictBase, following: TensorDictBase) -> TensorDictBase:
        """Put `[B, T]` observations and what came next in order, `[B, num_slots]`."""
        parts = [root, following[:, -1:] if self.only_last else following]
        both: Any = torch.cat(parts, 1)
        return both if self.only_last else both[self.rows, self._source()]

    def _source(self) -> Tensor:
        """Which of [observations, what came next] each slot holds; unused slots hold some."""
        batch, steps = self.ends.shape
        # one more slot takes what is not inserted
        source = torch.full((batch, self.num_slots + 1), steps, device=self.ends.device)
        inserted = torch.where(self.ends, self.root + 1, self.num_slots)
        source = source.scatter(1, inserted, self.time + steps).scatter(1, self.root, self.time)
        return source[:, : self.num_slots]

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values at the observations and at what came next, both `[B, T, ...]`."""
        if self.only_last:
            # not two views of the same numbers
            return x[:, :-1], x[:, 1:].clone()
        return x[self.rows, self.root], x[self.rows, self.root + 1]

    def after_last(self, ndim: int) -> Tensor:
        """A flag at the first unused slot, `[B, num_slots, 1, ...]`."""
        slot = torch.arange(self.num_slots, device=self.root.device)
        flag = slot == self.root[:, -1:] + 2
        return flag.reshape(*flag.shape, *(1 for _ in range(ndim - 2)))


def _find_memories(module: nn.Module) -> tuple[list[Any], list[Any]]:
    """The modules to run, in order, and the memories among them."""
    parts = _parts(module)
    is_memory = [hasattr(part, "make_tensordict_primer") for part in parts]
    memories = [part for part, remembers in zip(parts, is_memory, strict=True) if remembers]
    if not memories:
        raise ValueError(
            f"{type(module).__name__} has no memory to unroll: pass the memory, or the "
            "TensorDictSequential in which it stands"
        )
    needed: set[NestedKey] = set()
    network: list[Any] = []
    for part, remembers in zip(reversed(parts), reversed(is_memory), strict=True):
        # what was sampled stands in the data
        samples = isinstance(part, ProbabilisticTensorDictModule)
        feeds = any(key in needed for key in unravel_key_list(part.out_keys))
        if remembers or (feeds and not samples):
            network.insert(0, part)
            needed.update(unravel_key_list(part.in_keys))
    return network, memories


def _parts(module: nn.Module) -> list[Any]:
    if not isinstance(module, TensorDictSequential):
        return [module]
    return [part for child in module.module.children() for part in _parts(child)]


def _is_init_key(memory: Any) -> NestedKey:
    keys = [key for key in memory.in_keys if key == "is_init" or key[-1] == "is_init"]
    return unravel_key(getattr(memory, "is_init_key", keys[0] if keys else "is_init"))


def _refuse_later(data: TensorDictBase, memories: list[Any]) -> None:
    """Refuse sequences whose `"next"` is not what came right after each step."""
    for key in (memory.role_key for memory in memories if hasattr(memory, "role_key")):
        here, there = data.get(key, None), data.get(unravel_key(("next", key)), None)
        if here is not None and there is not None:
            refuse(
                ((here > 0) & (there != -here)).flatten(1).any(1),
                "in {bad} of {all} sequences 'next' is not what came right after each step, as "
                "with n-step returns: run unroll first, then MultiStep",
            )


def _find_ends(data: TensorDictBase, flags: set[NestedKey], done_key: NestedKey) -> Tensor:
    """Steps `[B, T]` after which the next observation is not the one that came next."""
    ends = torch.zeros(data.shape, dtype=torch.bool, device=data.device)
    ends[:, -1] = True
    for key in flags:
        is_init = data.get(key, None)
        if is_init is None:
            raise KeyError(
                f"reset flags {key!r} are missing: append torchrl.envs.InitTracker() to the "
                "environment, or pass auto_register_policy_transforms=True to the collector"
            )
        is_init = is_init.flatten(2)
        refuse(
            (is_init.any(-1) != is_init.all(-1)).any(1),
            f"in {{bad}} of {{all}} sequences {key!r} resets some agents of an environment and not "
            "others: unroll needs one flag for all of them",
        )
        ends = ends | torch.nn.functional.pad(is_init[:, 1:].any(-1), (0, 1))
    done = data.get(unravel_key(("next", done_key)), None)
    return ends if done is None else ends | done.flatten(2).any(-1)


def _inputs(
    network: list[Any], memories: list[Any], flags: set[NestedKey], data: TensorDictBase
) -> tuple[TensorDictBase, TensorDictBase]:
    """What the modules read at each step, and what they read where the next one is inserted."""
    root, following = (TensorDict({}, data.shape, device=data.device) for _ in range(2))
    made: set[NestedKey] = set()
    owned = {key for memory in memories for key in unravel_key_list(memory.in_keys)[1:]}
    for part in network:
        for key in unravel_key_list(part.in_keys):
            value = None if key in made else data.get(key, None)
            if value is None:
                # computed by a module before, or optional: modules name what they miss
                continue
            root.set(key, value)
            if key in flags or key in owned:
                following.set(key, torch.zeros_like(value))
                continue
            value = data.get(unravel_key(("next", key)), None)
            if value is None:
                raise KeyError(
                    f"{key!r} feeds the memory, but {('next', key)} is not in the data: give it to "
                    "the head (as an action of a critic), or keep it in the rollouts"
                )
            following.set(key, value)
        made.update(unravel_key_list(part.out_keys))
    for memory in memories:
        _draw_choices(memory, root, following)
    return root, following


def _choices(memory: Any) -> list[NestedKey]:
    """Keys that each step writes and a sequence reads again, but that no step hands on."""
    out_keys = unravel_key_list(memory.out_keys)
    read = unravel_key_list(memory.in_keys)
    marks = {getattr(memory, "role_key", None)}
    marks |= {key for key in read if unravel_key(("next", key)) in out_keys}
    return [key for key in out_keys if key in read and key not in marks]


def _draw_choices(memory: Any, root: TensorDictBase, following: TensorDictBase) -> None:
    """Choices for the observations on which nothing has acted yet."""
    for key in _choices(memory):
        choice = root.get(key, None)
        if choice is None:
            continue
        # of our cells, for whose sake no primer has to be made in every pass
        num_choices = getattr(getattr(memory, "cell", None), "num_choices", None)
        if num_choices is not None:
            following.set(key, torch.randint_like(choice, num_choices))
            continue
        spec = memory.make_tensordict_primer().primers[key]
        following.set(key, spec.expand(choice.shape).rand().to(choice.device))


def _outputs(network: list[Any], memories: list[Any]) -> list[NestedKey]:
    """Keys that the pass gives: what the modules compute, and the choices of the memories."""
    keys: list[NestedKey] = []
    for part in network:
        owned = part.in_keys if part in memories else []
        states = {unravel_key(key) for key in owned}
        written = [key for key in unravel_key_list(part.out_keys) if key not in states]
        keys += [key for key in written if isinstance(key, str) or key[0] != "next"]
        keys += _choices(part) if part in memories else []
    return list(dict.fromkeys(keys))
