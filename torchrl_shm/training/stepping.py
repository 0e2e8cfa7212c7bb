"""The loop of a collector on dictionaries of tensors, which are stacked once per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    InitTracker,
    RewardSum,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
    set_exploration_type,
)

from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.modules.lean import MemoryPrimer
from torchrl_shm.networks.policy import Behavior, Entries
from torchrl_shm.torchrl_private import (
    get_carrier,
    number_episodes,
    only_steps,
    pack,
    set_carrier,
    start_over,
)
from torchrl_shm.training.finite import FiniteSteps


class FiniteRewardSum(RewardSum):
    """Counts a reward that is not finite as zero, so that the sum can be saved.

    The reward itself is left as it is, for `FiniteCheck`.
    """

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        reward = next_tensordict.get("reward")
        next_tensordict.set("reward", reward.nan_to_num(0.0, 0.0, 0.0))
        return super()._step(tensordict, next_tensordict).set("reward", reward)


class SteppingCollector(Collector):
    """A `Collector` that plays a batch on dictionaries of tensors, and stacks them once.

    TorchRL's own loop, which gives the same data, passes a TensorDict through every network and
    every transform, and computes a reset for all environments where one of them starts anew. It is
    taken where an option, the environment, a transform or an entry is unknown here.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import get_behavior, make_actor_critic
        >>> from torchrl_shm.training.stepping import SteppingCollector
        >>> env = TransformedEnv(WindEnv(2))
        >>> behavior = get_behavior(make_actor_critic(env, SHMModule))
        >>> sizes = {"frames_per_batch": 6, "total_frames": 6, "track_traj_ids": False}
        >>> (batch,) = SteppingCollector(
        ...     env, behavior, **sizes, auto_register_policy_transforms=True)
        >>> batch["is_init"][0, :, 0].tolist()
        [True, False, False]
    """

    def rollout(self) -> TensorDictBase:
        """Collect one batch.

        Returns:
            Sequences `[B, T]`.
        """
        with torch.no_grad(), set_exploration_type(self.exploration_type):
            carrier, plan = get_carrier(self), make_plan(self)
            if carrier is None or plan is None or not all(key in carrier for key in plan.needed):
                return super().rollout()
            if self.reset_at_each_iter:
                start_over(self)
            shape, device = carrier.batch_size, carrier.device
            act = _find_step(self.policy, device)
            entries = Entries(carrier.items(), shape)
            starts = [(primer, entries[primer.memory_key]) for primer in plan.lean]
            steps: list[tuple[Entries, dict[str, Any]]] = []
            try:
                for _ in range(self.frames_per_batch):
                    carried = act(entries)
                    came_next, following = plan.step(entries, carried)
                    steps.append((entries, came_next))
                    before, entries = entries, plan.start_episodes(following)
                    if self.track_traj_ids:
                        entries["collector"] = before["collector"].copy()
                        set_carrier(self, pack(entries, shape, device))
                        number_episodes(self, pack(came_next, shape, device))
            finally:
                # also where the rollout was interrupted
                set_carrier(self, pack(entries, shape, device))
            roots, nexts = zip(*steps, strict=True)
            batch = _stack(roots, shape, device)
            batch.set("next", _stack(nexts, shape, device))
            for primer, memory in starts:
                primer.write_sequences(self, memory, batch)
            return batch.refine_names(..., "time")


def _find_step(policy: Any, device: torch.device | None) -> Callable[[Entries], dict[str, Any]]:
    """A function that adds to a step what the policy writes, and returns what it hands on."""
    if isinstance(policy, Behavior) and policy.draws_from_entries:
        return policy.draw

    def act(entries: Entries) -> dict[str, Any]:
        tensordict = pack(entries, entries.shape, device)
        written = policy(tensordict)
        if written is not tensordict:
            tensordict.update(written, keys_to_update=policy.out_keys)
        entries.update(tensordict.items())
        return dict(entries.pop("next", {}).items())

    return act


def _stack(steps: Sequence[dict[Any, Any]], shape: torch.Size, device: torch.device | None) -> Any:
    keys = steps[0].keys()
    if any(step.keys() != keys for step in steps):
        # a policy that does not always write the same
        return TensorDict.maybe_dense_stack([pack(step, shape, device) for step in steps], -1)
    columns = {key: torch.stack([step[key] for step in steps], len(shape)) for key in keys}
    return pack(columns, torch.Size((*shape, len(steps))), device)


class _Plan(NamedTuple):
    """What a step has to do and to write, looked up once per batch."""

    transformed: TransformedEnv
    env: BatchedEnv
    finite: list[FiniteSteps]
    # keys of sums of rewards and of reset flags, and those that primers start at zero
    sums: list[str]
    flags: list[str]
    primed: list[str]
    # keys of memories that are not collected, and the primers that spread their starts
    hidden: list[str]
    lean: list[MemoryPrimer]
    # what a step cannot do without
    needed: tuple[str, ...]
    # what the next step takes from this one's "next", and what it does not keep
    handed_on: frozenset[str]
    dropped: frozenset[str]

    def step(
        self, entries: Entries, carried: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Step the environment and its transforms.

        Args:
            entries: what the policy has read and written, tensors `[B, ...]`; memories that are
                not collected are taken out.
            carried: what it has written for the next step.

        Returns:
            What came next, and what the policy reads next.
        """
        after = self.env.advance(entries["action"])
        for finite in self.finite:
            finite.look(carried.items(), after)
        for key in self.sums:
            after[key] = entries[key] + after["reward"].nan_to_num(0.0, 0.0, 0.0)
        for key in self.flags:
            after[key] = torch.zeros_like(after["done"])
        after = {key: entries[key] for key in self.primed} | carried | after
        following = {key: x for key, x in entries.items() if key not in self.dropped}
        for key in self.handed_on:
            following[key] = after[key]
        for key in self.hidden:
            del entries[key], after[key]
        return after, following

    def start_episodes(self, entries: dict[str, Any]) -> Entries:
        """Start new episodes where `done` is true.

        What nobody but the policy knows is left as it is; the policy writes it anew.

        Args:
            entries: what the policy would read next.

        Returns:
            The same with new episodes.
        """
        env, done = self.env, entries["done"]
        if not env.starts_rows:
            following = pack(entries, env.batch_size, env.device)
            entries = dict(self.transformed.maybe_reset(following).items())
        elif bool(done.any()):
            started = env.start_rows({key: entries[key] for key in self.handed_on})
            for finite in self.finite:
                finite.look_at_start(started)
            entries = entries | started | {key: done.clone() for key in self.flags}
        return Entries(entries, env.batch_size)


def make_plan(collector: Collector) -> _Plan | None:
    """`None` where something is unknown."""
    transformed, policy = collector.env, collector.policy
    if not (
        type(transformed) is TransformedEnv
        and isinstance(policy, TensorDictModuleBase)
        and all(_is_flat(key) for key in policy.out_keys)
        and only_steps(collector)
    ):
        return None
    env: Any = transformed.base_env
    stack: Any = transformed.transform
    transforms: list[Any] = list(stack) if type(stack) is Compose else [stack]
    plan = _Plan(transformed, env, [], [], [], [], [], [], (), frozenset(), frozenset())
    for transform in transforms:
        kind = type(transform)
        if kind is FiniteSteps:
            if plan.sums or plan.flags:
                # it would look at what is only made by a transform before it
                return None
            # on other devices it would wait for the device, and does nothing
            plan.finite.extend([transform] if env.device.type == "cpu" else [])
        elif kind is FiniteRewardSum:
            plan.sums.extend(transform.out_keys)
        elif kind is InitTracker:
            plan.flags.extend(transform.init_keys)
        elif kind in (TensorDictPrimer, MemoryPrimer) and _starts_at_zero(transform):
            plan.primed.extend(transform.primers.keys(True, True))
            if kind is MemoryPrimer:
                if transform.role_key not in policy.out_keys:
                    # the primer writes what the policy does not
                    return None
                plan.hidden.extend([] if transform.state == "stored" else [transform.memory_key])
                plan.lean.extend([transform] if transform.state == "lean" else [])
        elif not _does_nothing(transform):
            return None
    observed, done = transformed.observation_spec, transformed.full_done_spec
    handed_on = frozenset((*observed.keys(True, True), *done.keys(True, True)))
    dropped = frozenset((*done.keys(True, True), *transformed.reward_keys, "_reset"))
    flat = all(isinstance(key, str) for key in handed_on | dropped)
    # what it reads of its own last step would be zero where an episode starts
    own = {*policy.in_keys} & {*policy.out_keys} - handed_on
    if own or not (isinstance(env, BatchedEnv) and flat and _is_stepped(env)):
        return None
    needed = (*plan.sums, *plan.primed)
    return plan._replace(needed=needed, handed_on=handed_on, dropped=dropped)


def _is_flat(key: Any) -> bool:
    return isinstance(key, str) or (len(key) == 2 and key[0] == "next")


def _is_stepped(env: BatchedEnv) -> bool:
    """Whether nothing is lost where `advance` and `start_rows` are called instead."""
    methods = ("_step", "_reset", "step", "reset", "maybe_reset", "step_and_maybe_reset")
    kind = type(env)
    return not env.run_type_checks and all(
        getattr(kind, name) is getattr(BatchedEnv, name) for name in methods
    )


def _starts_at_zero(primer: TensorDictPrimer) -> bool:
    values: Any = primer.default_value
    values = values.values() if isinstance(values, dict) else (values,)
    drawn = primer.random or primer.call_before_env_reset
    return not drawn and all(not callable(value) and value == 0 for value in values)


def _does_nothing(transform: Transform) -> bool:
    """Whether a transform leaves all steps and resets as they are."""
    kind = type(transform)
    steps = ("_step", "_call", "_inv_call", "_post_step_mdp_hooks")
    return not (transform.in_keys or transform.in_keys_inv) and all(
        getattr(kind, name) is getattr(Transform, name)
        for name in (*steps, "_reset", "_reset_env_preprocess")
    )
