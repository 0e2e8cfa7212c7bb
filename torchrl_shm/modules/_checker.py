"""The promises of a memory, one method each; see `check_memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import set_recurrent_mode

from torchrl_shm.modules._resets import reset
from torchrl_shm.modules.unrolling import unroll

# an error above this is no rounding: relative and absolute tolerance
_TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-10, 1e-12)}


class MemoryCheckError(AssertionError):
    """A memory broke a promise.

    Attributes:
        promise: name of the broken promise, one of `MemoryReport.promises`.
    """

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise


class Checker:
    """The data of one check and one method per promise."""

    def __init__(
        self,
        module: TensorDictModuleBase,
        input_size: int | None,
        batch_size: int,
        num_steps: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        primer = getattr(module, "make_tensordict_primer", None)
        if primer is None:
            inner = [n for n, m in module.named_modules() if hasattr(m, "make_tensordict_primer")]
            raise TypeError(
                f"{type(module).__name__} has no make_tensordict_primer(), by which TorchRL "
                "recognizes a memory; "
                + (
                    f"pass the memory in it, {inner[0]!r}"
                    if inner
                    else "wrap your cell in torchrl_shm.MemoryModule"
                )
            )
        self.module: Any = module
        self.input_key: NestedKey = module.in_keys[0]
        self.output_key: NestedKey = module.out_keys[0]
        self.is_init_key: NestedKey = getattr(module, "is_init_key", "is_init")
        primed: dict[NestedKey, Any] = dict(primer().primers.items(True, True))
        out_keys = [unravel_key(key) for key in module.out_keys]
        self.states = {k: s for k, s in primed.items() if unravel_key(("next", k)) in out_keys}
        # what a step writes itself is recorded: choices, and roles
        self.choices = [key for key in primed if key not in self.states]
        self.carries = getattr(module, "state", "stored") != "zero"
        parameter = next(module.parameters(), torch.zeros(()))
        self.rtol, self.atol = _TOLERANCE.get(parameter.dtype, (1e-2, 1e-2))

        size = _find_input_size(module) if input_size is None else input_size
        self.batch, self.steps = batch_size, num_steps
        factory: Any = {"device": parameter.device, "dtype": parameter.dtype}
        self.x = torch.randn(batch_size, num_steps, size, **factory)
        # every sequence starts with a reset; one reset in common, the others scattered
        self.reset = num_steps // 2
        is_init = torch.rand(batch_size, num_steps, device=parameter.device) < 0.2
        is_init[:, 1 : self.reset] = False
        is_init[:, [0, self.reset]] = True
        self.is_init = is_init
        # after each end of an episode and after the last step comes one more observation
        self.ends = torch.nn.functional.pad(is_init[:, 1:], (0, 1), value=True)
        following = torch.cat([self.x[:, 1:], self.x[:, :1]], 1)
        self.following = torch.where(self.ends[..., None], torch.randn_like(self.x), following)
        self.max_error = 0.0

    def run(self) -> tuple[str, ...]:
        # the most specific first: a leak, for example, also makes steps and sequence differ
        checks: list[Callable[[], None]] = [
            self.calls_repeat,
            self.resets_drop_values,
            self.resets_stop_gradients,
            self.past_is_remembered,
            self.steps_equal_sequence,
            self.next_drops_values,
            self.next_is_exact,
        ]
        if self.carries:
            checks.append(self.state_is_carried)
        for check in checks:
            check()
        return tuple(check.__name__ for check in checks)

    @torch.no_grad()
    def calls_repeat(self) -> None:
        _, data = self._run_steps(self.x)
        first, second = self._run_sequence(data), self._run_sequence(data)
        self._compare(
            "calls_repeat", first, second, "of two equal calls (is every random choice recorded?)"
        )

    @torch.no_grad()
    def resets_drop_values(self) -> None:
        outputs, data = self._run_steps(self.x)
        expected = {"step": outputs, "recurrent": self._run_sequence(data)}
        for value in (3.0, float("inf"), float("nan")):
            x = self.x.clone()
            x[:, : self.reset] = value
            outputs, broken = self._run_steps(x)
            for mode, found in (("step", outputs), ("recurrent", self._run_sequence(broken))):
                self._compare(
                    "resets_drop_values", found[:, self.reset :], expected[mode][:, self.reset :],
                    f"after a reset in {mode} mode, with inputs of {value} and with others before "
                    "it (multiplying a state by zero keeps NaN: use torch.where)",
                    first_step=self.reset,
                )  # fmt: skip

    @torch.enable_grad()
    def resets_stop_gradients(self) -> None:
        with torch.no_grad():
            _, data = self._run_steps(self.x)
        x = data[self.input_key].detach().requires_grad_()
        y = self._run_sequence(data.clone(False).set(self.input_key, x))
        (gradient,) = torch.autograd.grad(y[:, self.reset :].sum(), x)
        leaked = gradient[:, : self.reset].abs().max()
        if float(leaked) != 0.0:
            raise MemoryCheckError(
                "resets_stop_gradients",
                f"outputs after the reset at step {self.reset} send a gradient of up to "
                f"{float(leaked):.2g} to inputs before it",
            )

    @torch.no_grad()
    def past_is_remembered(self) -> None:
        _, data = self._run_steps(self.x)
        changed = data.clone()
        # not a shift of all features, which a normalization would undo
        changed[self.input_key][:, 0] = torch.randn_like(self.x[:, 0])
        later = slice(1, self.reset)
        difference = self._run_sequence(changed)[:, later] - self._run_sequence(data)[:, later]
        if not bool((difference != 0).any()):
            raise MemoryCheckError(
                "past_is_remembered",
                "the first input of an episode changes no later output: the state is dropped "
                "between steps",
            )

    @torch.no_grad()
    def steps_equal_sequence(self) -> None:
        outputs, data = self._run_steps(self.x)
        sequence = self._run_sequence(data)
        self.max_error = float((outputs - sequence).abs().max())
        self._compare("steps_equal_sequence", sequence, outputs, "of recurrent mode and step mode")

    @torch.no_grad()
    def state_is_carried(self) -> None:
        outputs, data = self._run_steps(self.x)
        # a cut in mid-episode, as at the end of a collector's batch
        cut = self.reset // 2
        tail = self._run_sequence(data[:, cut:])
        self._compare(
            "state_is_carried", tail, outputs[:, cut:],
            "of a sequence that starts in mid-episode and of the uncut one (is the given state "
            "used?)",
            first_step=cut,
        )  # fmt: skip

    @torch.no_grad()
    def next_drops_values(self) -> None:
        _, data = self._run_steps(self.x)
        expected, _ = self._unroll(data, self.following)
        x, following = self.x.clone(), self.following.clone()
        x[:, : self.reset] = torch.randn_like(x[:, : self.reset])
        following[:, : self.reset] = torch.randn_like(following[:, : self.reset])
        _, data = self._run_steps(x)
        found, _ = self._unroll(data, following)
        self._compare(
            "next_drops_values", found[:, self.reset :], expected[:, self.reset :],
            "of unroll for the next observations after a reset, with other inputs before it,",
            first_step=self.reset,
        )  # fmt: skip

    @torch.no_grad()
    def next_is_exact(self) -> None:
        outputs, data = self._run_steps(self.x)
        found, unrolled = self._unroll(data, self.following)
        expected = torch.cat([outputs[:, 1:], outputs[:, :1]], 1)
        for row, last in self.ends.nonzero().tolist():
            first = int(self.is_init[row, : last + 1].nonzero().max())
            episode: Any = data[row : row + 1, first : last + 1]
            came_next: Any = episode[:, -1:].clone()
            came_next[self.input_key] = self.following[row, last][None, None]
            came_next[self.is_init_key] = torch.zeros_like(came_next[self.is_init_key])
            for key in self.choices:
                choice = unrolled.get(unravel_key(("next", key)), None)
                if choice is not None:
                    came_next[key] = choice[row, last][None, None]
            whole: Any = torch.cat([episode, came_next], 1)
            expected[row, last] = self._run_sequence(whole)[0, -1]
        self._compare(
            "next_is_exact", found, expected,
            "of unroll for the next observations and of sequences that end with them",
        )  # fmt: skip

    def _unroll(self, data: TensorDictBase, following: Tensor) -> tuple[Tensor, TensorDictBase]:
        """The outputs at the next observations, and all that unroll gives."""
        # the same draws every time
        torch.manual_seed(self.seed)
        data = data.copy()
        data[unravel_key(("next", self.input_key))] = following
        data["next", "done"] = self.ends[..., None]
        unrolled = unroll(self.module, data)
        return unrolled[unravel_key(("next", self.output_key))], unrolled

    def _run_steps(self, x: Tensor) -> tuple[Tensor, TensorDictBase]:
        """Step through `x` and return the outputs and the data that a collector would stack."""
        # the same draws every time, so that only the inputs make a difference
        torch.manual_seed(self.seed)
        state = {
            key: torch.zeros(self.batch, *spec.shape, dtype=spec.dtype, device=x.device)
            for key, spec in self.states.items()
        }
        outputs: list[Tensor] = []
        stacked: list[TensorDictBase] = []
        for t in range(self.steps):
            is_init = self.is_init[:, t, None]
            step = TensorDict({}, [self.batch], device=x.device)
            step.set(self.input_key, x[:, t])
            step.set(self.is_init_key, is_init)
            for key, value in state.items():
                # stale at resets: the module has to drop it
                step.set(key, value)
            with set_recurrent_mode(False):
                step = self.module(step)
            outputs.append(step[self.output_key])
            state = {key: step["next", key] for key in self.states}
            record = step.select(self.input_key, self.is_init_key, *self.choices)
            for key in self.states:
                # what is stored at a reset comes from the primer, which starts from zero
                record.set(key, reset(step[key], is_init.squeeze(1)))
            stacked.append(record)
        return torch.stack(outputs, 1), TensorDict.maybe_dense_stack(stacked, 1)

    def _run_sequence(self, data: TensorDictBase) -> Tensor:
        with set_recurrent_mode(True):
            return self.module(data.clone(False))[self.output_key]

    def _compare(
        self, promise: str, found: Tensor, expected: Tensor, what: str, first_step: int = 0
    ) -> None:
        close = torch.isclose(found, expected, self.rtol, self.atol)
        if bool(close.all()):
            return
        sequence, step = (~close).flatten(2).any(-1).nonzero()[0].tolist()
        error = (found - expected).abs().max()
        raise MemoryCheckError(
            promise,
            f"outputs {what} differ by up to {float(error):.2g}, first in sequence {sequence} at "
            f"step {first_step + step}",
        )


def _find_input_size(module: nn.Module) -> int:
    for submodule in module.modules():
        size = getattr(submodule, "input_size", None)
        if isinstance(size, int):
            return size
    raise ValueError(
        f"{type(module).__name__} does not name its input_size; pass check_memory(module, "
        "input_size=...)"
    )
