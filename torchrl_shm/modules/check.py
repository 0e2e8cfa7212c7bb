"""A check that a memory is reset, carried and replayed correctly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import set_recurrent_mode

from torchrl_shm.modules._resets import reset

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


@dataclass(frozen=True)
class MemoryReport:
    """The result of `check_memory`.

    Attributes:
        promises: names of the promises that held, in the order in which they were checked.
        max_error: largest difference between a step and its place in a sequence.
    """

    promises: tuple[str, ...]
    max_error: float

    def __str__(self) -> str:
        """One line per promise."""
        lines = [f"ok  {promise}" for promise in self.promises]
        return "\n".join([*lines, f"largest step-sequence difference: {self.max_error:.1e}"])


def check_memory(
    module: TensorDictModuleBase,
    *,
    input_size: int | None = None,
    batch_size: int = 3,
    num_steps: int = 12,
    seed: int = 0,
) -> MemoryReport:
    """Test that a recurrent TensorDict module keeps its promises.

    Works with any module that has the contract of `torchrl.modules.GRUModule`.
    Random inputs with resets in mid-sequence run through step mode and recurrent mode:

    - `calls_repeat`: recurrent mode gives the same twice on the same data, so that every random
      choice that acted is recorded and replayed;
    - `resets_drop_values`: nothing from before a reset reaches after it, NaN and infinity
      included, even if the state handed over at the reset is stale;
    - `resets_stop_gradients`: no gradient of an output flows to an input before a reset;
    - `past_is_remembered`: the first input of an episode changes later outputs;
    - `steps_equal_sequence`: recurrent mode, run on what step mode recorded (resets, stored
      states, choices such as `theta_index`), gives the outputs of step mode;
    - `state_is_carried`: a sequence that starts in mid-episode goes on from the state it is given.

    With `state="zero"` a `MemoryModule` starts empty by design: `state_is_carried` is left out.
    The parameters are not changed, and torch's random generator is left as it was.

    Args:
        module: the module; its input has one feature dimension and is its first `in_key`.
        input_size: number of input features; by default the `input_size` that the module or one
            of its submodules names.
        batch_size: number of sequences.
        num_steps: length of the sequences, at least 6.
        seed: seed of the inputs and of the module's own draws.

    Returns:
        The promises that were checked, and the largest difference seen.

    Raises:
        MemoryCheckError: a promise is broken; the message says which, where and by how much.
        TypeError: the module has no `make_tensordict_primer`, so it is not a memory.
        ValueError: `input_size` is neither given nor found, or `num_steps` is too small.

    Examples:
        >>> from torchrl_shm import SHMModule, check_memory
        >>> module = SHMModule(5, 3, in_key="observation", out_key="features")
        >>> check_memory(module).promises[0]
        'calls_repeat'
    """
    if num_steps < 6:
        raise ValueError(f"num_steps={num_steps} must be at least 6 to hold resets")
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        return _Checker(module, input_size, batch_size, num_steps, seed).run()


class _Checker:
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
        # what is handed on; what a step writes itself is recorded: choices, and roles
        self.states = {
            k: s
            for k, s in primed.items()
            if unravel_key(("next", k)) in out_keys and k not in out_keys
        }
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
        self.max_error = 0.0

    def run(self) -> MemoryReport:
        # the most specific first: a leak, for example, also makes steps and sequence differ
        checks: list[Callable[[], None]] = [
            self.calls_repeat,
            self.resets_drop_values,
            self.resets_stop_gradients,
            self.past_is_remembered,
            self.steps_equal_sequence,
        ]
        if self.carries:
            checks.append(self.state_is_carried)
        for check in checks:
            check()
        return MemoryReport(tuple(check.__name__ for check in checks), self.max_error)

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
