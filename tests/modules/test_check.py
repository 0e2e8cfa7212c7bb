"""`check_memory` lets good memories pass and names the promise that a bad one breaks."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchrl.modules import GRUModule, LSTMModule

from tests._night import at_night
from tests.modules._helpers import SIZE, Trace, join, make_memory
from torchrl_shm.modules import (
    SHM,
    Calibration,
    MemoryCheckError,
    MemoryModule,
    MemoryReport,
    check_memory,
    make_mlp,
)

KEYS: dict[str, Any] = {"in_key": "observation", "out_key": "features"}
PROMISES = (
    "calls_repeat",
    "resets_drop_values",
    "resets_stop_gradients",
    "past_is_remembered",
    "steps_equal_sequence",
    "next_drops_values",
    "next_is_exact",
    "state_is_carried",
)


class Leaks(Trace):
    def reset(self, memory: Tensor, is_init: Tensor) -> Tensor:
        return memory


class LeaksALittle(Trace):
    def reset(self, memory: Tensor, is_init: Tensor) -> Tensor:
        return torch.where(is_init, 1e-3 * memory, memory)


class Multiplies(Trace):
    def reset(self, memory: Tensor, is_init: Tensor) -> Tensor:
        return memory * ~is_init


class LeaksGradients(Trace):
    def reset(self, memory: Tensor, is_init: Tensor) -> Tensor:
        finite = memory.nan_to_num()
        return torch.where(is_init, finite - finite.detach(), memory)


class Differs(Trace):
    def read_sequence(self, y: Tensor) -> Tensor:
        return 1.001 * y


class DropsTheStart(Trace):
    def start(self, memory: Tensor) -> Tensor:
        return torch.zeros_like(memory)


class Forgets(Trace):
    def carry(self, memory: Tensor) -> Tensor:
        return 0 * memory.nan_to_num()


class LeaksInLongSequences(Trace):
    """Fine in the 12 steps of a check; what came next makes the sequence longer."""

    def forward(self, x: Tensor, memory: Any = None, is_init: Any = None, *args: Any) -> Any:
        return super().forward(x, memory, None if x.shape[1] > 12 else is_init, *args)


class DiffersInLongSequences(Trace):
    def read_sequence(self, y: Tensor) -> Tensor:
        return y * (1.001 if y.shape[1] > 12 else 1)


class Draws(Trace):
    def read(self, memory: Tensor) -> Tensor:
        return memory + 0.1 * torch.rand_like(memory)


class StepLeaks(MemoryModule):
    """Relies on the primer to empty the memory that enters a step."""

    def _run_step(self, tensordict: Any) -> None:
        is_init = tensordict["is_init"]
        data = tensordict.copy().set("is_init", torch.zeros_like(is_init))
        super()._run_step(data)
        tensordict.update(data.set("is_init", is_init))


class StepForgets(MemoryModule):
    """Empty memories at each step, but whole sequences remember."""

    def _run_step(self, tensordict: Any) -> None:
        is_init = tensordict["is_init"]
        data = tensordict.copy().set("is_init", torch.ones_like(is_init))
        super()._run_step(data)
        tensordict.update(data.set("is_init", is_init))


class DrawsAgain(SHM):
    """Does not use the choices that acted."""

    def __init__(self) -> None:
        super().__init__(SIZE, 3)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        return super().forward(x, *args[:2])


def wrap(cell: Any, **options: Any) -> MemoryModule:
    return MemoryModule(cell, **KEYS, **options)


@pytest.mark.parametrize(
    "calibration", at_night(get_args(Calibration), unless=lambda x: x in ("random", "none"))
)
def test_shm_passes(calibration: Calibration) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        report = check_memory(make_memory(16, calibration=calibration, dtype=dtype))
        assert report.promises == PROMISES
        assert report.max_error <= bound


@pytest.mark.parametrize(
    "options",
    [
        {"clamp": 0.3},
        {"burn_in": 2},
        {"shortcut": False},
        {"state": "stored"},
        {"in_keys": [("agent", "observation"), ("agent", "memory")]},
        {"in_keys": ["observation", "m"], "theta_index_key": "choice", "is_init_key": "start"},
    ],
    ids=str,
)
def test_options_pass(options: dict[str, Any]) -> None:
    assert check_memory(make_memory(**options)).promises == PROMISES


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("make", [GRUModule, LSTMModule])
def test_memories_of_torchrl_pass(make: Any, num_layers: int) -> None:
    assert check_memory(make(SIZE, 7, num_layers, **KEYS)).promises == PROMISES


def test_a_foreign_cell_passes() -> None:
    assert check_memory(wrap(Trace())).promises == PROMISES
    assert check_memory(wrap(Trace(), state="stored")).promises == PROMISES
    # nothing is carried from one sequence to the next
    assert check_memory(wrap(Trace(), state="zero")).promises == PROMISES[:-1]


@pytest.mark.parametrize(
    ("kind", "cell", "promise", "message"),
    [
        (MemoryModule, Leaks, "resets_drop_values", "recurrent mode, .* 3.0 .* at step 6"),
        (MemoryModule, LeaksALittle, "resets_drop_values", "in recurrent mode, .* of 3.0"),
        (StepLeaks, Trace, "resets_drop_values", "in step mode, with inputs of 3.0"),
        (StepLeaks, Leaks, "resets_drop_values", "in step mode, with inputs of 3.0"),
        (MemoryModule, Multiplies, "resets_drop_values", r"of (inf|nan) .*use torch\.where"),
        (MemoryModule, LeaksGradients, "resets_stop_gradients", "after the reset at step 6 send"),
        (MemoryModule, Forgets, "past_is_remembered", "the state is dropped between steps"),
        (StepForgets, Trace, "steps_equal_sequence", "differ by up to .* in sequence 0 at step 1"),
        (MemoryModule, Differs, "steps_equal_sequence", "of recurrent mode and step mode differ"),
        (MemoryModule, LeaksInLongSequences, "next_drops_values", "unroll .* after a reset"),
        (MemoryModule, DiffersInLongSequences, "next_is_exact", "of sequences that end with them"),
        (MemoryModule, DropsTheStart, "state_is_carried", "state used.* in sequence 0 at step 3"),
        (MemoryModule, Draws, "calls_repeat", "is every random choice recorded"),
        (MemoryModule, DrawsAgain, "calls_repeat", "is every random choice recorded"),
    ],
)
def test_the_broken_promise_is_named(kind: Any, cell: Any, promise: str, message: str) -> None:
    with pytest.raises(MemoryCheckError, match=f"^{promise}: .*{message}") as caught:
        check_memory(kind(cell(), **KEYS))
    assert caught.value.promise == promise
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("broken", [Leaks, Multiplies, LeaksGradients])
def test_a_module_that_selects_for_its_cell_is_safe(broken: type[Trace]) -> None:
    """With state="stored" the cell never sees a reset."""
    assert "resets_drop_values" in check_memory(wrap(broken(), state="stored")).promises


def test_the_seed_decides_the_check() -> None:
    module = wrap(Differs())
    state = torch.get_rng_state()
    errors: list[str] = []
    for seed in (1, 1, 2):
        with pytest.raises(MemoryCheckError) as caught:
            check_memory(module, seed=seed)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] != errors[2]
    # a failure, too, restores the generator
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("batch_size", "num_steps"), [(1, 6), (4, 30)])
def test_sizes(batch_size: int, num_steps: int) -> None:
    report = check_memory(make_memory(), batch_size=batch_size, num_steps=num_steps)
    assert report.promises == PROMISES


def test_nothing_is_changed() -> None:
    module = make_memory(default_recurrent_mode=True)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.cell.out.weight.grad = torch.ones_like(module.cell.out.weight)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_memory(module)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
        assert (parameter.grad is None) == (name != "cell.out.weight")
    assert (module.cell.out.weight.grad == 1).all()
    assert module.recurrent_mode


def test_the_report_reads_well() -> None:
    lines = str(check_memory(make_memory())).splitlines()
    assert lines[:-1] == [f"ok  {promise}" for promise in PROMISES]
    assert re.fullmatch(r"largest step-sequence difference: \d\.\de-\d\d", lines[-1])
    assert str(MemoryReport((), 0.0)) == "largest step-sequence difference: 0.0e+00"


def test_what_is_no_memory() -> None:
    with pytest.raises(TypeError, match=r"has no make_tensordict_primer.*MemoryModule"):
        check_memory(make_mlp(SIZE, 3, **KEYS))
    with pytest.raises(TypeError, match=r"has no make_tensordict_primer.*pass the memory in it"):
        check_memory(join(make_memory()))


def test_without_gradients() -> None:
    with torch.no_grad():
        assert "resets_stop_gradients" in check_memory(make_memory()).promises


def test_unknown_input_size() -> None:
    cell: Any = Trace()
    cell.linear = nn.LazyLinear(SIZE)
    cell.input_size = None
    module = wrap(cell)
    with pytest.raises(ValueError, match=r"does not name its input_size; pass check_memory\(mod"):
        check_memory(module)
    assert check_memory(module, input_size=SIZE).promises == PROMISES


def test_too_few_steps() -> None:
    with pytest.raises(ValueError, match="num_steps=5 must be at least 6 to hold resets"):
        check_memory(make_memory(), num_steps=5)
