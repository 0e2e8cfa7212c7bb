"""Every private name of TorchRL and tensordict that this package stands on.

The functions wrap what is read and called. `OVERRIDDEN` lists the methods that classes of ours
override although their names start with an underscore: most are TorchRL's documented way to write
an environment or a transform, the others are marked. A test looks for all of them, so that a new
version of TorchRL that drops one is noticed by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    "torchrl.envs.EnvBase": (
        "_reset",
        "_step",
        "_set_seed",
        # whether `reset(set_state=True)` is offered; without it the keyword would be refused
        "_supports_set_state",
        # checks that our environments do not need; without them a step gets slower
        "_assert_tensordict_shape",
        "_step_proc_data",
    ),
    "torchrl.envs.Transform": (
        "_reset",
        "_step",
        # called once per step with what is stacked; lean rollouts have no public place for it
        "_post_step_mdp_hooks",
        # called by batched environments that would bypass the hook; refuses them
        "_check_batched_worker_compat",
    ),
}
"""Methods by class, with what would replace them where that is known."""


def following_seed(seed: int) -> int:
    """The seed of the next environment of a batch, as TorchRL's `set_seed` draws it.

    Args:
        seed: that of the one before it.
    """
    from torchrl._utils import seed_generator

    return seed_generator(seed)


def get_carrier(collector: Any) -> TensorDictBase | None:
    """The TensorDict that a collector hands from step to step; `None` where it has none.

    Would be replaced by a public hook on what a collector stacks.

    Args:
        collector: a `torchrl.collectors.Collector`, in the process in which it steps.
    """
    carrier = getattr(collector, "_carrier", None)
    return carrier if isinstance(carrier, TensorDictBase) else None


def set_carrier(collector: Any, carrier: TensorDictBase) -> None:
    """Let a collector go on from another TensorDict, as a resumed run does.

    Would be replaced by a `state_dict` of collectors that holds the running episodes.

    Args:
        collector: a `torchrl.collectors.Collector`, in the process in which it steps.
        carrier: what the policy reads next.
    """
    collector._carrier = carrier


def number_episodes(collector: Any, came_next: TensorDictBase) -> None:
    """Give new numbers to the episodes that start in a collector's carrier.

    Would be replaced by a public hook in place of the loop over steps.

    Args:
        collector: a `torchrl.collectors.Collector` that tracks trajectories, in its process.
        came_next: the `"next"` of the step that ended episodes.
    """
    collector._update_traj_ids({"next": came_next})


def start_over(collector: Any) -> None:
    """Start new episodes everywhere, as collectors with `reset_at_each_iter` do.

    Would be replaced by `collector.reset()`, which writes into tensors that are not its own.

    Args:
        collector: a `torchrl.collectors.Collector`, in the process in which it steps.
    """
    collector._carrier.update(collector.env.reset())
    collector._start_new_trajectories()


def only_steps(collector: Any) -> bool:
    """Whether a collector does nothing but to step one environment and to stack the steps.

    Would be replaced by a public hook in place of the loop over steps.

    Args:
        collector: a `torchrl.collectors.Collector`, in the process in which it steps.
    """
    c, env = collector, collector.env
    return not (
        is_random(c)
        or c._cast_to_policy_device
        or c._compact_next_keys
        or c._truncated_keys
        or c.compiled_policy
        or c.cudagraphed_policy
        or c.pre_collect_hook is not None
        or c.replay_buffer is not None
        or c.interruptor is not None
        or c.storing_device not in (None, env.device)
    )


def is_random(collector: Any) -> bool:
    """Whether a collector acts at random instead of by its policy, as in its first frames.

    Would be replaced by a public property of collectors.

    Args:
        collector: a `torchrl.collectors.Collector`, in the process in which it steps.
    """
    return bool(collector._should_use_random_frames())


def preallocates(collector: Any) -> bool:
    """Whether a collector writes into buffers that it made in advance.

    Would be replaced by a public attribute of collectors.

    Args:
        collector: a `torchrl.collectors.Collector`.
    """
    return bool(collector._use_buffers)


def find_caller(function: Any) -> bool:
    """Whether a method of TorchRL is running above; false while compiling.

    A module is told neither which loss runs it nor that `BurnInTransform` wants its memory. Would
    be replaced by arguments of these calls.

    Args:
        function: the method, of a class.
    """
    if torch.compiler.is_compiling():
        return False
    code = inspect.unwrap(function).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def find_pass() -> Literal["loss", "unshifted"] | None:
    """Which of TorchRL's passes is running a module; `None` where its user calls it.

    `"unshifted"`: a value estimator runs it over the observations and over what came next, with
    equal reset flags. `"loss"`: another pass of an estimator or a loss, either of which may be one
    over what came next; also while compiling, where nobody knows.
    """
    if torch.compiler.is_compiling():
        return "loss"
    # environments, which stand on this file, need no losses
    from torchrl.objectives import LossModule
    from torchrl.objectives.value import ValueEstimatorBase

    found: Literal["loss"] | None = None
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ValueEstimatorBase):
            name = frame.f_code.co_name
            if name == "_call_value_nets" and not frame.f_locals["single_call"]:
                return "unshifted"
            found = "loss"
        elif isinstance(owner, LossModule):
            return "loss"
        frame = frame.f_back
    return found


def pack(
    entries: dict[str, Tensor], batch_size: torch.Size, device: torch.device | None
) -> TensorDictBase:
    """Make a TensorDict without checks, as TorchRL's own environments do.

    Replaced by `TensorDict(entries, batch_size, device)`, which costs as much as six operations.

    Args:
        entries: tensors `[*batch_size, ...]` on the device.
        batch_size: the batch size.
        device: the device.
    """
    return TensorDict._new_unsafe(  # pyright: ignore[reportPrivateUsage]
        entries, batch_size=batch_size, device=device
    )


def put(target: TensorDictBase, entries: Mapping[Any, Any]) -> None:
    """Write entries of a TensorDict without checks, as TorchRL's own environments do.

    Replaced by `target.update(entries)`, which costs as much as three operations per entry.

    Args:
        target: a TensorDict.
        entries: tensors or TensorDicts by key, of its batch size and device.
    """
    for key, entry in entries.items():
        if isinstance(key, str):
            target._set_str(  # pyright: ignore[reportPrivateUsage]
                key, entry, validated=True, inplace=False, non_blocking=False
            )
        else:
            target.set(key, entry)
