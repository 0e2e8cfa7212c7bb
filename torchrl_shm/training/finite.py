"""Stops a run at the first value that is not finite, and says where it is."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import Transform

from torchrl_shm.checks import check_option
from torchrl_shm.envs._checks import describe_bad_start
from torchrl_shm.modules.lean import LEAN

OnNonfinite = Literal["stop", "skip"]
"""`"stop"`: end the run. `"skip"`: leave out the sequences and minibatches, and say so."""

# values of a memory from which float32 products are about to leave their range
_LARGE = 1e6
_OVERFLOWING = 1e30
# the squares of what is read of a memory, which are summed to normalize it
_OVERFLOWING_MEMORY = 1e18
_ADVICE = "lower algo.learning_rate, bound the memory with memory.clamp=100"


class FiniteCheck:
    """Keeps values that are not finite away from the parameters.

    Args:
        on_nonfinite: see `OnNonfinite`.

    Attributes:
        update: number of the update that messages name.
        skipped: sequences and minibatches left out so far.

    Raises:
        ValueError: `on_nonfinite` is unknown.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.training import FiniteCheck
        >>> check = FiniteCheck("skip")
        >>> batch = TensorDict({"reward": torch.tensor([[0.0], [torch.nan]])}, [2, 1])
        >>> check.rollouts(batch).shape, check.skipped
        (torch.Size([1, 1]), 1)
    """

    def __init__(self, on_nonfinite: OnNonfinite = "stop") -> None:
        check_option("on_nonfinite", on_nonfinite, OnNonfinite)
        self.on_nonfinite = on_nonfinite
        self.update = 0
        self.skipped = 0
        self._warned = False

    def rollouts(self, batch: TensorDictBase) -> TensorDictBase:
        """Check all that was collected.

        Args:
            batch: sequences `[B, T]`.

        Returns:
            The sequences in which everything is finite; all of them, unless `on_nonfinite="skip"`.

        Raises:
            FloatingPointError: a value is not finite, or no sequence is left.

        Warns:
            UserWarning: a memory has grown very large; once.
        """
        self._warn_of_large_memories(batch)
        entries = [
            (key, value)
            for key, value in batch.items(True, True)
            if value.is_floating_point() and value.numel()
        ]
        # if all is finite, this waits for the device only once
        if bool(torch.stack([value.isfinite().all() for _, value in entries]).all()):
            return batch
        key, where = _describe_first(entries)
        self._stop_or_say(
            f"non-finite data: {where}",
            "fix the environment" if key == ("next", "reward") else _ADVICE,
        )
        good = torch.stack([value.isfinite().flatten(1).all(1) for _, value in entries]).all(0)
        if not bool(good.any()):
            raise FloatingPointError(f"no sequence of update {self.update} is finite")
        self.skipped += int((~good).sum())
        return batch[good]

    def gradient(self, norm: Tensor, loss: nn.Module) -> bool:
        """Check the norm of the gradient before the optimizer's step.

        A loss that is not finite has such a gradient, so this check covers both.

        Args:
            norm: what `clip_grad_norm_` returned, a scalar `[]`.
            loss: the module whose parameters are learned.

        Returns:
            Whether to make the step.

        Raises:
            FloatingPointError: it is not finite, unless `on_nonfinite="skip"`.
        """
        if bool(norm.isfinite()):
            return True
        bad = next(
            (
                name
                for name, parameter in loss.named_parameters()
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            ),
            "its norm",
        )
        self._stop_or_say(f"non-finite gradient: {bad}", _ADVICE)
        self.skipped += 1
        return False

    def _stop_or_say(self, what: str, advice: str) -> None:
        message = f"update {self.update}: {what}"
        if self.on_nonfinite == "skip":
            print(f"{message}; skipped", file=sys.stderr, flush=True)
            return
        raise FloatingPointError(
            f"{message}. It did not reach the parameters; {advice}, or leave such data out with "
            "experiment.on_nonfinite=skip"
        )

    def _warn_of_large_memories(self, batch: TensorDictBase) -> None:
        if self._warned:
            return
        for key in batch.keys():
            if str(key).endswith(LEAN) and batch[key].numel():
                largest = float(batch[key].abs().max())
                if largest > _LARGE:
                    self._warned = True
                    name = str(key).removesuffix(LEAN)
                    warnings.warn(
                        f"update {self.update}: {name!r} has grown to {largest:.3g}; bound it "
                        "with memory.clamp=100",
                        stacklevel=3,
                    )


class FiniteSteps(Transform):
    """Names an observation or a memory that is not finite in the step in which it appears.

    Without it the policy would compute actions from it, and the environment would refuse those. On
    devices other than the CPU, where a check has to wait for the device, `FiniteCheck` looks at the
    whole batch instead.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.training.finite import FiniteSteps
        >>> TransformedEnv(WindEnv(2), FiniteSteps()).rollout(3).shape
        torch.Size([2, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0
        self._observations: list[NestedKey] | None = None

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if all(value.device.type == "cpu" for value in next_tensordict.values(True, True)):
            # what the policy wrote for the next step is what it carries
            carried = tensordict.get("next", None)
            self.look(() if carried is None else carried.items(True, True), next_tensordict)
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if all(value.device.type == "cpu" for value in tensordict_reset.values(True, True)):
            self.look_at_start(tensordict_reset)
        return tensordict_reset

    def look_at_start(self, started: Any) -> None:
        """Check what a reset gave.

        Args:
            started: entries by key that the environment emitted.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        seen = [(key, started[key]) for key in self._keys()]
        dims = len(self.parent.batch_size)  # pyright: ignore[reportOptionalMemberAccess]
        if bad := describe_bad_start(seen, batch_dims=dims):
            raise FloatingPointError(f"non-finite observation: {bad}; fix the environment")

    def _keys(self) -> list[NestedKey]:
        if self._observations is None:
            parent: Any = self.parent
            self._observations = list(parent.observation_spec.keys(True, True))
        return self._observations

    def look(self, carried: Iterable[tuple[NestedKey, Tensor]], came_next: Any) -> None:
        """Check one step.

        Args:
            carried: entries that the policy wrote for the next step.
            came_next: entries by key that the environment emitted.
        """
        advice = "bound it in a new run, with memory.clamp=100, or learn slower"
        self._look("memory", carried, advice, _OVERFLOWING_MEMORY)
        # no policy reads a reward: sequences with bad ones can be left out later
        seen = [(key, came_next[key]) for key in self._keys()]
        self._look("observation", seen, "fix the environment")
        # setting an attribute of a module costs as much as several operations
        vars(self)["_steps"] += 1

    def _look(
        self,
        what: str,
        entries: Iterable[tuple[NestedKey, Tensor]],
        advice: str,
        limit: float = _OVERFLOWING,
    ) -> None:
        for key, value in entries:
            # a sum is not finite if a value is not, and costs less than to look at each value
            if not value.is_floating_point() or abs(float(value.sum())) < limit:
                continue
            # products of larger values leave the range of float32 within this step
            wrong = value.masked_fill(value.abs() >= limit, torch.inf)
            if bool(wrong.isfinite().all()):
                continue
            # counted from the start of the rollout, if this environment belongs to a collector
            collector = self.collector
            step = self._steps if collector is None else self._steps % collector.frames_per_batch
            raise FloatingPointError(
                f"non-finite {what}: {_describe(key, wrong.unsqueeze(1), step)}; {advice}"
            )


def _describe(key: NestedKey, value: Tensor, step: int = 0) -> str:
    """Say where the first bad value of `[B, T, ...]` is, whose steps are counted from `step`."""
    at, sequence = _first_bad(value)
    bad = value[sequence, at]
    number = float(bad[~bad.isfinite()].flatten()[0])
    return f"{key!r} is {number} in sequence {sequence}, step {at + step}"


def _first_bad(value: Tensor) -> tuple[int, int]:
    """The earliest step of `[B, T, ...]` at which a value is not finite, and its first sequence."""
    bad = (~value.isfinite()).reshape(*value.shape[:2], -1).any(2)
    step = int(bad.any(0).nonzero()[0, 0])
    return step, int(bad[:, step].nonzero()[0, 0])


def _describe_first(entries: Iterable[tuple[NestedKey, Tensor]]) -> tuple[NestedKey, str]:
    """Find the entry that is the earliest to be not finite, and describe it."""
    bad = [(key, value) for key, value in entries if not bool(value.isfinite().all())]
    key, value = min(bad, key=lambda entry: _first_bad(entry[1])[0])
    if isinstance(key, str) and key.endswith(LEAN):
        # a sequence carries the memory at its start in shares, one per step
        name, row = key.removesuffix(LEAN), _first_bad(value)[1]
        return key, f"{name!r} is not finite at the start of sequence {row}"
    return key, _describe(key, value)
