"""Steps of an environment with its transforms, in one pass over its entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import (
    Compose,
    InitTracker,
    RewardSum,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)

from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.modules.lean import MemoryPrimer
from torchrl_shm.torchrl_private import pack, put
from torchrl_shm.training.finite import FiniteSteps


class FiniteRewardSum(RewardSum):
    """Counts a reward that is not finite as zero, so that the sum can be saved.

    The reward itself is left as it is, for `FiniteCheck`.
    """

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        reward = next_tensordict.get("reward")
        next_tensordict.set("reward", reward.nan_to_num(0.0, 0.0, 0.0))
        return super()._step(tensordict, next_tensordict).set("reward", reward)


class _Plan(NamedTuple):
    """What a step has to do and to write, looked up once."""

    env: BatchedEnv
    finite: list[FiniteSteps]
    # keys of sums of rewards and of reset flags, and those that primers start at zero
    sums: list[str]
    flags: list[str]
    primed: list[str]
    memories: list[MemoryPrimer]
    # what a step cannot do without
    needed: tuple[str, ...]
    # what the next step takes from this one's "next", and what it does not keep
    handed_on: frozenset[str]
    dropped: frozenset[str]


class SteppingEnv(TransformedEnv):
    """A `TransformedEnv` that steps, and starts episodes, without copies and look-ups between.

    TorchRL's own path, which gives the same data, passes a TensorDict through every transform, and
    computes a reset for all environments where one of them starts anew. It is taken where an
    environment, a transform or an entry is unknown here.

    Examples:
        >>> from torchrl.envs import InitTracker
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.training.stepping import SteppingEnv
        >>> SteppingEnv(WindEnv(2), InitTracker()).rollout(3)["is_init"][0, :, 0].tolist()
        [True, False, False]
    """

    # in a tuple once it was looked up
    _plan: tuple[_Plan | None] | None = None

    def empty_cache(self) -> None:
        """Forget what was looked up; called where the transforms change."""
        vars(self)["_plan"] = None
        super().empty_cache()

    def step_and_maybe_reset(
        self, tensordict: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """Make a step, and start new episodes where it ends some.

        Args:
            tensordict: what the policy has read and written, `[B]`.

        Returns:
            The same TensorDict with `"next"`, and what the policy reads next.
        """
        plan = self._look_up()
        before: dict[Any, Any] = dict(tensordict.items())
        written = before.pop("next", None)
        carried: dict[str, Any] = {} if written is None else dict(written.items())
        if (
            plan is None
            or "_step" in before
            or tensordict.device != plan.env.device
            or not all(key in before for key in plan.needed)
            or not all(isinstance(entry, Tensor) for entry in carried.values())
        ):
            return super().step_and_maybe_reset(tensordict)
        env, shape = plan.env, plan.env.batch_size
        after: dict[Any, Any] = env.advance(before["action"])
        for finite in plan.finite:
            finite.look(carried.items(), after)
        for key in plan.sums:
            after[key] = before[key] + after["reward"].nan_to_num(0.0, 0.0, 0.0)
        for key in plan.flags:
            after[key] = torch.zeros_like(after["done"])
        after = {key: before[key] for key in plan.primed} | carried | after
        following = {
            # branches are copied, for the next step writes to them
            key: entry if isinstance(entry, Tensor) else entry.copy()
            for key, entry in before.items()
            if key not in plan.dropped
        }
        for key in plan.handed_on:
            following[key] = after[key]
        for primer in plan.memories:
            primer.finish_step(shape, tensordict, before, after, following)
        put(tensordict, {"next": pack(after, shape, env.device)})
        if not env.starts_rows:
            return tensordict, super().maybe_reset(pack(following, shape, env.device))
        return tensordict, pack(self._start_rows(plan, following), shape, env.device)

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Start new episodes where `done` is true.

        What nobody but the policy knows is left as it is; the policy writes it anew.

        Args:
            tensordict: what the policy would read next, `[B]`.

        Returns:
            The same with new episodes.
        """
        plan, entries = self._look_up(), dict(tensordict.items())
        if plan is None or not plan.env.starts_rows or not plan.handed_on <= entries.keys():
            return super().maybe_reset(tensordict)
        entries = self._start_rows(plan, entries)
        return pack(entries, plan.env.batch_size, plan.env.device)

    def _start_rows(self, plan: _Plan, entries: dict[str, Any]) -> dict[str, Any]:
        done = entries["done"]
        if not bool(done.any()):
            return entries
        started = plan.env.start_rows({key: entries[key] for key in plan.handed_on})
        return entries | started | {key: done.clone() for key in plan.flags}

    def _look_up(self) -> _Plan | None:
        if self._plan is None:
            # setting an attribute of a module costs as much as several operations
            vars(self)["_plan"] = (self._make_plan(),)
            assert self._plan is not None
        return self._plan[0]

    def _make_plan(self) -> _Plan | None:
        """`None` where something is unknown."""
        env: Any = self.base_env
        stack: Any = self.transform
        transforms: list[Any] = list(stack) if type(stack) is Compose else [stack]
        plan = _Plan(env, [], [], [], [], [], (), frozenset(), frozenset())
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
                plan.memories.extend([transform] if kind is MemoryPrimer else [])
            elif not _does_nothing(transform):
                return None
        observed, done, reward = self.observation_spec, self.full_done_spec, self.reward_keys
        handed_on = frozenset((*observed.keys(True, True), *done.keys(True, True)))
        # collectors write what is theirs anew
        others = ("_reset", "collector")
        dropped = frozenset((*done.keys(True, True), *self.action_keys, *reward, *others))
        flat = all(isinstance(key, str) for key in handed_on | dropped)
        if not (isinstance(env, BatchedEnv) and flat and _is_stepped(env)):
            return None
        needed = ("action", *plan.sums, *plan.primed)
        return plan._replace(needed=needed, handed_on=handed_on, dropped=dropped)


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
