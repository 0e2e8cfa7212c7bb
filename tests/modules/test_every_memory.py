"""What every memory of the group `memory` keeps to, so that a new one is tested without a test."""

from __future__ import annotations

import pickle
from inspect import signature
from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.modules import set_recurrent_mode

from tests._night import at_night
from tests.modules._helpers import EXACT, SIZE, STEP, WalkEnv, make_inputs, run_steps
from tests.modules.test_ppo_exactness import ratio_error, shared, train
from torchrl_shm import modules
from torchrl_shm.configs import MEMORIES
from torchrl_shm.modules import SHM, BaseCell, check_memory

# all but the one without a memory
NAMES = [name for name in MEMORIES if name != "mlp"]
# where a test takes long, some of each kind; cells that differ from one of these in a number or a
# word are tested without what takes long
FEW = at_night(
    NAMES, unless=lambda name: name in ("shm", "gru", "lstm", "gpt2", "lru", "mlstm", "dnc")
)
COMPILED = at_night(NAMES, unless=lambda name: name in ("shm", "gru", "mlstm"))
# those that begin with a LayerNorm
NORMED = ("shm", "linear_attention", "fast_weights", "mlstm", "lru", "s6")


def build(
    name: str,
    dtype: torch.dtype = torch.float64,
    sizes: tuple[int, int] = (SIZE, 6),
    **options: Any,
) -> Any:
    """A memory as a recipe builds it, with parameters that make its parts matter."""
    torch.manual_seed(0)
    make = instantiate(MEMORIES[name], **options)
    module = make(
        input_size=sizes[0], output_size=sizes[1], in_key="observation", out_key="features"
    )
    # parameters that start at zero or one would hide errors
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.to(dtype)


def make_choices(cell: Any, is_init: Tensor) -> Tensor | None:
    return None if cell.num_choices is None else torch.randint(cell.num_choices, is_init.shape)


def gradients(cell: nn.Module, x: Tensor, memory: Tensor, y: Tensor, last: Tensor) -> Any:
    """Of inputs, initial memory and parameters, for a loss on outputs and final memory."""
    torch.manual_seed(1)
    loss = (y * torch.randn_like(y)).sum() + (last * torch.randn_like(last)).sum()
    return torch.autograd.grad(
        loss, [x, memory, *cell.parameters()], allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("name", FEW)
def test_check_memory(name: str) -> None:
    report = check_memory(build(name, torch.float32))
    assert "state_is_carried" in report.promises


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_its_steps(name: str) -> None:
    cell = build(name).cell
    x, memory, is_init = make_inputs(cell)
    index = make_choices(cell, is_init)
    y, last, _ = cell(x, memory, is_init, index)
    expected, expected_last = run_steps(cell, x, memory, is_init, index)
    assert_close(y, expected, **EXACT)
    assert_close(last, expected_last, **EXACT)
    found = gradients(cell, x, memory, y, last)
    wanted = gradients(cell, x, memory, expected, expected_last)
    for actual, reference in zip(found, wanted, strict=True):
        assert_close(actual, reference, rtol=1e-9, atol=1e-10)
    # a reset at the first step hides the initial memory, nothing else does
    dmemory = found[1].flatten(1)
    assert not dmemory[0].any()
    assert dmemory[-1].any()


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(name: str) -> None:
    cell = build(name, torch.float32).cell
    x, is_init = torch.randn(2, 40, cell.input_size), torch.rand(2, 40) < 0.1
    memory, index = x.new_zeros(2, *cell.memory_shape), make_choices(cell, is_init)
    with torch.no_grad():
        y, _, _ = cell(x, memory, is_init, index)
        assert_close(y, run_steps(cell, x, memory, is_init, index)[0], **STEP)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_its_steps_on_cuda(name: str) -> None:
    cell = build(name).cell.to("cuda")
    x, memory, is_init = (z.to("cuda") for z in make_inputs(build(name).cell))
    index = make_choices(cell, is_init.cpu())
    index = None if index is None else index.to("cuda")
    y, last, _ = cell(x, memory, is_init, index)
    assert y.device == last.device == x.device
    expected, expected_last = run_steps(cell, x, memory, is_init, index)
    assert_close(y, expected, **EXACT)
    assert_close(last, expected_last, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_the_memory(name: str) -> None:
    cell = build(name, torch.float32).cell
    x = torch.randn(2, 6, cell.input_size)
    index = None if cell.num_choices is None else torch.randint(cell.num_choices, (2, 6))
    with torch.no_grad():
        y, memory, _ = cell(x, None, None, index)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, same, _ = cell(x, None, None, index)
            step, one, _ = cell.step(x[:, 0].bfloat16())
    assert same.dtype == one.dtype == memory.dtype == torch.float32
    assert step.isfinite().all()
    if name.startswith("shm"):
        # its linear maps are rounded to eight bits, its memory is not
        assert_close(rounded.float(), y, rtol=0.05, atol=0.05)
    else:
        assert_close(rounded, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nothing_passes_a_reset(name: str, poison: float) -> None:
    cell = build(name).cell
    x, memory, is_init = make_inputs(cell, batch=2, steps=9)
    index = make_choices(cell, is_init)
    is_init[:] = False
    is_init[:, 4] = True
    later = None if index is None else index[:, 4:]
    expected, expected_last, _ = cell(x[:, 4:], None, None, later)
    memory = torch.full_like(memory, poison).requires_grad_()
    x = torch.cat([torch.full_like(x[:, :4], poison), x[:, 4:]], 1).requires_grad_()
    y, last, _ = cell(x, memory, is_init, index)
    assert_close(y[:, 4:], expected, **EXACT)
    assert_close(last, expected_last, **EXACT)
    assert gradients(cell, x, memory, y[:, 4:], last)[0][:, 4:].isfinite().all()
    # a reset at the first step: then no output is spoilt
    x, is_init = x.detach()[:, 4:].requires_grad_(), is_init[:, 4:]
    y, last, _ = cell(x, memory, is_init, later)
    assert_close(y, expected, **EXACT)
    dx, dmemory, *dparameters = gradients(cell, x, memory, y, last)
    assert not dmemory.any()
    assert all(gradient.isfinite().all() for gradient in (dx, *dparameters))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (1, 1), (2, 1), (1, 33)])
def test_odd_sizes(name: str, batch: int, steps: int) -> None:
    cell = build(name, sizes=(3, 5)).cell
    x, memory, is_init = make_inputs(cell, batch, steps)
    index = make_choices(cell, is_init)
    y, last, _ = cell(x, memory, is_init, index)
    assert (y.shape, last.shape) == ((batch, steps, 5), (batch, *cell.memory_shape))
    assert_close(y, run_steps(cell, x, memory, is_init, index)[0], **EXACT)
    empty, same, _ = cell(x[:, :0], memory, is_init[:, :0], None if index is None else index[:, :0])
    assert empty.shape == (batch, 0, 5)
    assert_close(same, memory)
    # one agent without a batch
    y, last, _ = cell.step(torch.randn(3, dtype=torch.float64))
    assert (y.shape, last.shape) == ((5,), cell.memory_shape)


@pytest.mark.parametrize("name", FEW)
def test_ratio_of_ppo_is_one(name: str) -> None:
    agent = shared(build(name), torch.float64)

    def check(collected: Any, batch: Any) -> None:
        assert ratio_error(agent, batch) <= 1e-8

    train(agent, WalkEnv(dtype=torch.float64), check, learning_rate=0.05)


@pytest.mark.parametrize("name", COMPILED)
def test_step_mode_compiles_without_graph_breaks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile cannot trace the poisoned torch.empty
    monkeypatch.undo()
    # each module counts as a recompilation, of which there are few
    torch.compiler.reset()
    module = build(name)
    _, memory, _ = make_inputs(module.cell)
    data = TensorDict({"observation": torch.randn(3, SIZE, dtype=torch.float64)}, [3])
    data["is_init"] = torch.tensor([[True], [False], [False]])
    data["memory"] = memory.detach()
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.manual_seed(0)
        actual = compiled(data.copy())
        torch.manual_seed(0)
        expected = module(data.copy())
    for key in ("features", ("next", "memory")):
        assert_close(actual[key], expected[key], **EXACT)


@pytest.mark.parametrize("name", MEMORIES)
def test_state_dict_and_pickle(name: str) -> None:
    first, second = build(name, torch.float32), instantiate(MEMORIES[name])(
        input_size=SIZE, output_size=6, in_key="observation", out_key="features"
    )  # fmt: skip
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 8, SIZE)
    is_init = torch.zeros(2, 8, 1, dtype=torch.bool)
    is_init[:, 0] = True
    outputs: list[Tensor] = []
    for module in (first, second, pickle.loads(pickle.dumps(first))):
        data = TensorDict({"observation": x, "is_init": is_init}, [2, 8])
        torch.manual_seed(0)
        with torch.no_grad(), set_recurrent_mode(True):
            outputs.append(module(data)["features"])
    assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    assert_close(outputs[2], outputs[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name: str) -> None:
    cell = build(name).cell
    x, memory, is_init = make_inputs(cell)
    with pytest.raises(ValueError, match=f"4 features.*input_size={SIZE}"):
        cell(x[..., :4])
    with pytest.raises(ValueError, match="features"):
        cell.step(x[:, 0, :4])
    for wrong in (memory[:2], memory.flatten(1)[:, 1:]):
        with pytest.raises(ValueError, match="memory"):
            cell(x, wrong)
        with pytest.raises(ValueError, match="memory"):
            cell.step(x[:, 0], wrong)
    with pytest.raises(ValueError, match="is_init"):
        cell(x, memory, is_init[:, 1:])
    with pytest.raises(TypeError, match=r"is_init is torch\.float64, expected torch\.bool"):
        cell(x, memory, is_init.double())


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("shm_")])
def test_options_are_checked(name: str) -> None:
    cell: Any = type(build(name).cell)
    sizes = {"input_size": 3, "output_size": 5}
    for option, parameter in signature(cell).parameters.items():
        if str(parameter.annotation).startswith("int"):
            with pytest.raises(ValueError, match=f"{option}.* must be at least"):
                cell(**sizes | {option: 0})
        if isinstance(parameter.default, str):
            with pytest.raises(ValueError, match=rf"{option}='x' is unknown; choose one of \("):
                cell(**sizes | {option: "x"})


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_few_features_are_remembered_or_refused(name: str, size: int) -> None:
    if size < 3 and name.startswith(NORMED):
        wrong = rf"^input_size={size}: this memory begins with a LayerNorm, which leaves .*Embed"
        with pytest.raises(ValueError, match=wrong):
            build(name, sizes=(size, 6))
        return
    module = build(name, torch.float32, sizes=(size, 6))
    # of 64 agents that see the same from the second step on, most can be told apart by the first
    x = torch.randn(1, 3, size).repeat(64, 1, 1)
    x[:, 0] = torch.randn(64, size)
    is_init = torch.zeros(64, 3, 1, dtype=torch.bool)
    is_init[:, 0] = True
    data = TensorDict({"observation": x, "is_init": is_init}, [64, 3])
    if module.cell.num_choices is not None:
        data["theta_index"] = torch.zeros(64, 3, dtype=torch.int64)
    with torch.no_grad(), set_recurrent_mode(True):
        y = module(data)["features"][:, -1]
    y = (y - y.mean(0)) / (y - y.mean(0)).abs().max()
    assert len({tuple(row) for row in y.mul(100).round().tolist()}) > 40


def test_every_cell_is_in_the_group() -> None:
    cells = {
        cell
        for cell in vars(modules).values()
        if isinstance(cell, type) and issubclass(cell, BaseCell) and cell is not BaseCell
    }
    assert {type(build(name).cell) for name in NAMES} == cells | {SHM}


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("shm")])
def test_parameters_of_few_bits_are_refused(name: str) -> None:
    cell = build(name, torch.bfloat16).cell
    for run in (cell, cell.step):
        with pytest.raises(
            TypeError, match=r"torch\.bfloat16; .* torch\.float32 or torch\.float64"
        ):
            run(torch.randn(2, 3, SIZE, dtype=torch.bfloat16))
