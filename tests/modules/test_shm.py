"""The SHM cell: the authors' numbers, the six calibrations, and the claims of the paper."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modules._helpers import EXACT, run_steps
from torchrl_shm.modules import SHM, Calibration, FeatureMap, QKNorm, SHMModule
from torchrl_shm.modules._features import column_weights
from torchrl_shm.ops import Backend

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALIBRATIONS = get_args(Calibration)
# the authors' names of what is called otherwise here
RENAMED = {"theta_matrix": "theta", "vc_net.weight": "vc.weight"}

FADING: dict[str, Any] = {"forget": True, "span": 20}

every_calibration = pytest.mark.parametrize("calibration", CALIBRATIONS)


def make(calibration: Calibration = "random", **options: Any) -> Any:
    options = {"num_theta": 7, "dtype": torch.float64} | options
    return SHM(5, 3, memory_size=6, calibration=calibration, **options)


def make_inputs(batch: int = 2, steps: int = 11, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, initial memory and resets."""
    options = {"dtype": torch.float64} | options
    x, memory = torch.randn(batch, steps, 5, **options), torch.randn(batch, 6, 6).to(**options)
    is_init = torch.rand(batch, steps) < 0.2
    return x, memory, is_init


def gate(cell: SHM, x: Tensor, theta_index: Tensor | None = None) -> Tensor:
    """The product of the calibrations over a sequence: what the memory is linear in."""
    x = x.unsqueeze(1) if x.ndim == 2 else x
    if cell.num_choices is not None and theta_index is None:
        theta_index = torch.randint(cell.num_choices, x.shape[:2])
    zeros = x.new_zeros(len(x), *cell.memory_shape)
    with torch.no_grad():
        ends = [cell(x, memory, None, theta_index)[1] for memory in (zeros + 1, zeros)]
    return ends[0] - ends[1]


# the authors' released code


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Recorded tensors and the parameters of the original that made them."""
    with np.load(FIXTURES / f"shm_module_{name}.npz") as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    parameters = {
        key.removeprefix("param."): value
        for key, value in tensors.items()
        if key.startswith("param.")
    }
    return tensors, parameters


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize(
    ("name", "clamp"), [("standalone", None), ("pomdp", 100.0), ("clamp", 100.0)]
)
def test_equals_the_original(name: str, clamp: float | None, backend: Backend) -> None:
    recorded, parameters = load(name)
    cell = SHM.from_reference(parameters, clamp=clamp, backend=backend)
    x, memory = (recorded[key].requires_grad_() for key in ("x", "M0"))
    y, final, theta_index = cell(x, memory, theta_index=recorded["theta_index"])
    assert theta_index is recorded["theta_index"]
    assert_close(y, recorded["y"], rtol=0, atol=1e-10)
    assert_close(final, recorded["MT"], rtol=1e-10, atol=1e-10)

    torch.autograd.backward([y, final], [recorded["grad_y"], recorded["grad_MT"]])
    assert_close(x.grad, recorded["dx"], rtol=1e-10, atol=1e-10)
    assert_close(memory.grad, recorded["dM0"], rtol=1e-10, atol=1e-10)
    named = dict(cell.named_parameters())
    for key in parameters:
        gradient = named.pop(RENAMED.get(key, key)).grad
        assert_close(gradient, recorded[f"dparam.{key}"], rtol=1e-10, atol=1e-10, msg=key)
    assert not named


def test_the_recorded_clamp_was_at_work() -> None:
    recorded, parameters = load("clamp")
    assert recorded["MT"].abs().max() == 100
    cell = SHM.from_reference(parameters)
    y, _, _ = cell(recorded["x"], recorded["M0"], None, recorded["theta_index"])
    assert not torch.allclose(y, recorded["y"])


def test_fixed_reads_row_zero_of_the_released_table() -> None:
    recorded, parameters = load("standalone")
    random = SHM.from_reference(parameters)
    fixed = SHM.from_reference(parameters, calibration="fixed")
    zeros = torch.zeros_like(recorded["theta_index"])
    expected = random(recorded["x"], recorded["M0"], theta_index=zeros)
    y, memory, theta_index = fixed(recorded["x"], recorded["M0"])
    assert theta_index is None
    assert fixed.num_choices is None
    assert_close((y, memory), expected[:2], **EXACT)


def test_released_sizes_dtype_and_options_are_kept() -> None:
    _, parameters = load("pomdp")
    cell = SHM.from_reference({key: p.float() for key, p in parameters.items()}, backend="chunked")
    assert (cell.input_size, cell.output_size, cell.memory_shape) == (10, 5, (24, 24))
    assert (cell.num_choices, cell.clamp, cell.backend) == (128, None, "chunked")
    # gradients too are those of the original
    assert not cell.revive
    assert {p.dtype for p in cell.parameters()} == {torch.float32}
    assert SHM.from_reference(load("standalone")[1]).shortcut is None


@pytest.mark.parametrize("options", [{"backend": "numba"}, {"fast_gate": True}], ids=str)
def test_fast_backends_in_the_cell(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = SHM(5, 5, memory_size=6, backend="reference")
    fast = SHM(5, 5, memory_size=6, **options)
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(3, 40, 5, requires_grad=True)
    expected, memory, theta_index = plain(x)
    wanted = torch.autograd.grad(expected.sum() + memory.sum(), [x, *plain.parameters()])
    y, memory, _ = fast(x, theta_index=theta_index)
    assert_close(y, expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(y.sum() + memory.sum(), [x, *fast.parameters()])
    for actual, gradient in zip(gradients, wanted, strict=True):
        assert_close(actual, gradient, rtol=1e-4, atol=1e-5)


def test_other_parameters_are_refused() -> None:
    _, parameters = load("standalone")
    # what reads one or two features and normalizes them remembers nothing, whoever trained it
    few = {key: p[..., :2] if p.shape[-1] == 10 else p for key, p in parameters.items()}
    with pytest.raises(ValueError, match=r"input_size=2: this memory begins with a LayerNorm"):
        SHM.from_reference(few)
    unknown: Any = "neural"
    with pytest.raises(ValueError, match=r"'neural' has no released parameters; use 'random'"):
        SHM.from_reference(parameters, calibration=unknown)
    parameters["theta_table"] = parameters.pop("theta_matrix")
    message = r"missing \['theta'\], unknown \['theta_table'\]; strip any prefix"
    with pytest.raises(KeyError, match=message):
        SHM.from_reference(parameters)


# calibrations


@every_calibration
def test_steps_are_clamped_as_sequences_are(calibration: Calibration) -> None:
    cell = make(calibration, clamp=0.3, shortcut=False)
    x, memory, is_init = make_inputs()
    y, final, index = cell(x, memory, is_init)
    assert_close((y, final), run_steps(cell, x, memory, is_init, index), **EXACT)
    assert final.abs().max() <= 0.3


@every_calibration
def test_choices(calibration: Calibration) -> None:
    draws = calibration in ("random", "noise")
    cell = make(calibration, num_theta=9)
    assert cell.num_choices == (9 if draws else None)
    for shape in ((), (3,), (2, 3)):
        y, memory, index = cell.step(torch.randn(*shape, 5, dtype=torch.float64))
        assert (y.shape, memory.shape) == ((*shape, 3), (*shape, 6, 6))
        assert (index is not None) == draws
        if index is not None:
            assert (index.shape, index.dtype) == (shape, torch.int64)
    if draws:
        # from torch's default generator
        x, _, _ = make_inputs(batch=50)
        first, second, third = ((torch.manual_seed(s), cell(x)[2])[1] for s in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        assert set(first.unique().tolist()) == set(range(9))


def test_a_table_of_one_row() -> None:
    cell = make(num_theta=1)
    x, _, _ = make_inputs()
    assert not cell(x)[2].any()


@pytest.mark.parametrize(
    ("calibration", "learned"),
    [
        ("random", {"theta", "vc.weight"}),
        ("fixed", {"theta", "vc.weight"}),
        ("neural", {"theta.weight", "vc.weight"}),
        ("none", set()),
        ("constant", {"theta", "vc"}),
        ("noise", set()),
    ],
)
def test_what_is_learned(calibration: Calibration, learned: set[str]) -> None:
    cell = make(calibration)
    x, memory, _ = make_inputs()
    y, final, index = cell(x, memory)
    (y.square().sum() + final.square().sum()).backward()
    names = {name for name, p in cell.named_parameters() if p.grad is not None and p.grad.any()}
    shared = {f"{name}.weight" for name in ("key", "query", "value", "eta", "out", "shortcut")}
    shared |= {"out.bias", "shortcut.bias", "norm.weight", "norm.bias"}
    assert names == learned | shared == set(dict(cell.named_parameters()))
    if calibration == "random":
        # rows that were not drawn do not learn
        assert isinstance(cell.theta, nn.Parameter)
        assert cell.theta.grad is not None
        rows = cell.theta.grad.any(1).nonzero().flatten().tolist()
        assert rows == sorted(set(index.flatten().tolist()))


@every_calibration
def test_gates(calibration: Calibration) -> None:
    """What they depend on, and that they lie in (0, 2)."""
    cell = make(calibration)
    x, other = torch.randn(2, 40, 5, dtype=torch.float64)
    index = torch.arange(40).unsqueeze(1) % 7 if cell.num_choices else None
    gates = gate(cell, x, index)
    assert ((gates > 0) & (gates < 2)).all()
    same = torch.allclose(gate(cell, other, index), gates, rtol=0, atol=1e-12)
    assert same == (calibration in ("none", "constant", "noise"))
    if calibration == "none":
        assert_close(gates, torch.ones_like(gates), **EXACT)
    if calibration == "constant":
        assert_close(gates, gates[:1].expand_as(gates), **EXACT)
        assert (gates - 1).abs().max() > 0.05
    if index is not None:
        assert not torch.allclose(gate(cell, x, (index + 1) % 7), gates, atol=1e-3)


@pytest.mark.parametrize(
    ("calibration", "options"),
    [*((x, {}) for x in CALIBRATIONS), *((x, FADING) for x in ("random", "fixed"))],
)
def test_calibrations_of_a_sequence_multiply_to_what_acts(
    calibration: Calibration, options: dict[str, Any]
) -> None:
    cell = make(calibration, **options)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    index = torch.randint(7, (2, 9)) if cell.num_choices else None
    made = cell.calibrate(x, index)
    assert made.shape == (2, 9, 6, 6)
    assert_close(made.prod(1), gate(cell, x, index), **EXACT)
    assert_close(cell.calibrate(x[0, 0], None if index is None else index[0, 0]), made[0, 0])
    if index is not None:
        with pytest.raises(ValueError, match=re.escape("theta_index is torch.int64 of shape [2]")):
            cell.calibrate(x, index[:, 0])


# few features


def spread(cell: SHM, size: int) -> int:
    """How many of 64 random inputs lead to memories that can be told apart."""
    _, memory, _ = cell.step(torch.randn(64, size), theta_index=torch.zeros(64).long())
    scaled = memory.detach().flatten(1) / memory.detach().abs().max().clamp(min=1e-9)
    return len({tuple(row) for row in scaled.mul(100).round().tolist()})


@pytest.mark.parametrize("size", [1, 2])
def test_few_features_without_the_norm(size: int) -> None:
    torch.manual_seed(0)
    cell = SHM(size, 4, memory_size=8, norm=False)
    assert not {"norm.weight", "norm.bias"} & cell.state_dict().keys()
    assert spread(cell, size) > 50
    # what is refused is of no use
    cell.norm = nn.LayerNorm(size)
    assert spread(cell, size) <= {1: 1, 2: 20}[size]


@every_calibration
def test_without_the_norm_inputs_are_read_as_they_are(calibration: Calibration) -> None:
    torch.manual_seed(0)
    normed = make(calibration)
    plain = make(calibration, norm=False)
    state = normed.state_dict()
    plain.load_state_dict({key: state[key] for key in state if not key.startswith("norm.")})
    x, memory, is_init = make_inputs()
    y, final, index = plain(x, memory, is_init)
    assert_close((y, final), run_steps(plain, x, memory, is_init, index), **EXACT)
    x_hat = nn.functional.layer_norm(x, (5,))
    expected = normed(x, memory, is_init, index)
    assert_close(plain(x_hat, memory, is_init, index)[:2], expected[:2], **EXACT)
    assert not torch.allclose(y, expected[0])


def test_autocast_without_the_norm_rounds_no_more_than_the_maps() -> None:
    cell = make(norm=False, dtype=torch.float32)
    x, memory, _ = make_inputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y, final, index = cell(x, memory.float())
        assert_close((y, final), cell(x.float(), memory.float(), None, index)[:2], rtol=0, atol=0)


# parameters


def test_released_initialization() -> None:
    cell = SHM(10, 50, memory_size=64, num_theta=128)
    assert isinstance(cell.theta, nn.Parameter)
    bound = math.sqrt(6 / (128 + 64))
    assert 0.99 * bound < cell.theta.abs().max() <= bound
    # of a uniform distribution, with 8192 samples
    assert cell.theta.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    for name, layer in cell.named_modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            few = layer.weight.numel() < 100
            assert (0.5 if few else 0.9) * bound < layer.weight.abs().max() <= bound, name
    assert (cell.norm.weight == 1).all()
    assert (cell.norm.bias == 0).all()
    assert cell.norm.eps == 1e-5


@pytest.mark.parametrize(("span", "memory_size"), [(50, 24), (500, 24), (500, 64)])
def test_products_over_the_span_stay_near_one(span: int, memory_size: int) -> None:
    cell: Any = SHM(64, 64, memory_size=memory_size, span=span)
    released = SHM(64, 64, memory_size=memory_size)
    spreads: list[float] = []
    for module in (cell, released):
        x = torch.randn(16, span, 64)
        _, (theta, vc, *_) = module._project(x, module._draw(x, None))
        log_c = torch.log1p(torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2)))
        spreads.append(float(log_c.sum(1).detach().std()))
    assert 0.22 < spreads[0] < 0.4
    assert spreads[1] > 1.3 * spreads[0]


def test_the_span_of_other_calibrations() -> None:
    # the same C at every step: its product has the spread of one C, times the number of steps
    cell: Any = SHM(64, 64, memory_size=24, span=100, calibration="constant")
    log_c = torch.log1p(torch.tanh(cell.theta.mT * cell.vc))
    assert 0.1 < float(100 * log_c.detach().std()) < 0.5
    # no start is wider than the released one
    for calibration in ("random", "fixed", "noise"):
        short: Any = SHM(64, 64, span=5, calibration=calibration)
        assert short.theta.abs().max() <= (6 / sum(short.theta.shape)) ** 0.5


@pytest.mark.parametrize("calibration", ["random", "fixed"])
def test_rows_that_forget(calibration: Calibration) -> None:
    """Row by row, one thing fades to 1/e within its own number of steps, from 1 to ten spans."""
    span, size = 100, 24
    cell: Any = SHM(64, 64, memory_size=size, span=span, forget=True, calibration=calibration)
    x = torch.randn(64, span, 64)
    _, (theta, vc, *_) = cell._project(x, cell._draw(x, None))
    log_c = torch.log1p(torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2)))
    log_c = log_c.detach()
    tau = (10 * span) ** torch.linspace(0, 1, size)
    assert_close(-1 / log_c.mean((0, 1, 3)), tau, rtol=0.4, atol=0.0)
    # where rows are drawn, products over tau steps differ, and hardly where not
    spread = log_c.std((0, 1, 3)) * tau.sqrt()
    assert ((spread > 0.25) & (spread < 0.6)).all() or calibration == "fixed"
    # the memory grows no more, where one that keeps all does
    sizes: list[float] = []
    for module in (cell, SHM(64, 64, memory_size=size, span=span, calibration=calibration)):
        memory: Any = torch.zeros(64, size, size)
        with torch.no_grad():
            for _ in range(30):
                _, memory, _ = module(torch.randn(64, span, 64), memory)
        sizes.append(float(memory.abs().max()))
    assert sizes[0] < 10 < sizes[1]
    # a step is a step of a sequence
    y, last, theta_index = cell(x[:, :5])
    memory = None
    for t in range(5):
        index = None if theta_index is None else theta_index[:, t]
        out, memory, _ = cell.step(x[:, t], memory, index)
        assert_close(out, y[:, t])
    assert_close(memory, last)
    y.sum().backward()
    assert (cell.vc.bias.grad != 0).all()
    assert "span=100, forget=True, feature_map='relu', qk_norm='sum', revive=True, " in repr(cell)


def test_rows_that_forget_in_a_low_precision() -> None:
    cell: Any = SHM(64, 64, memory_size=24, num_theta=4096, span=100, forget=True)
    low: Any = SHM(
        64, 64, memory_size=24, num_theta=4096, span=100, forget=True, dtype=torch.bfloat16
    )
    assert_close(low.theta.double().mean(0), cell.theta.double().mean(0), rtol=0.1, atol=0.0)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, "span=None and calibration='random'"),
        ({"span": 9, "calibration": "none"}, "span=9 and calibration='none'"),
        ({"span": 9, "calibration": "neural"}, "span=9 and calibration='neural'"),
    ],
)
def test_what_cannot_forget(options: dict[str, Any], given: str) -> None:
    message = f"forget=True with {given}: it needs a span, of steps, and the calibration 'random'"
    with pytest.raises(ValueError, match=message):
        SHM(5, 3, forget=True, **options)


@pytest.mark.parametrize("revive", [True, False])
def test_gradients_of_silent_rows(revive: bool) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -2.0, -3.0]], requires_grad=True)
    weights = column_weights(x, "relu", "sum", revive)
    assert_close(weights, torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]]), atol=1e-5, rtol=0.0)
    upstream = torch.tensor([[1.0, 5.0, 0.0], [1.0, -5.0, 0.0]])
    (grad,) = torch.autograd.grad(weights, x, upstream)
    # of a / (a + b), along what is positive
    assert_close(grad[0], torch.tensor([0.1875, 0.0, -0.0625]), atol=1e-5, rtol=0.0)
    assert grad[1].tolist() == (upstream[1].tolist() if revive else [0.0, 0.0, 0.0])
    with torch.no_grad():
        assert column_weights(x, "relu", "sum", revive).equal(weights)
    # outputs are the same where a number is not finite, too
    x = torch.tensor([[-math.inf, 1.0, 3.0], [-math.inf, -1.0, -1.0]], requires_grad=True)
    weights = column_weights(x, "relu", "sum", revive)
    assert_close(weights, torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 0.0]]), atol=1e-5, rtol=0.0)


def test_softplus_leaves_no_column_at_zero() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.1, -1.2]], requires_grad=True)
    weights = column_weights(x, "softplus", "sum", revive=False)
    positive = torch.log1p(torch.exp(5 * x)) / 5
    assert_close(weights, positive / positive.sum(-1, keepdim=True), atol=1e-2, rtol=0.0)
    assert_close(weights[0], torch.tensor([0.25, 0.0, 0.75]), atol=1e-3, rtol=0.0)
    assert (weights > 0).all()
    # also where nothing is positive
    (grad,) = torch.autograd.grad(weights[:, 0].sum(), x)
    assert (grad != 0).all()
    # what is very negative is as good as zero, and finite
    x = torch.full((1, 3), -30.0, requires_grad=True)
    weights = column_weights(x, "softplus", "sum", revive=False)
    (grad,) = torch.autograd.grad(weights.sum(), x)
    assert weights.sum() < 1e-6
    assert grad.isfinite().all()


def test_l2_divides_by_the_length() -> None:
    x = torch.tensor([[3.0, -1.0, 4.0], [-1.0, -2.0, -3.0]], requires_grad=True)
    weights = column_weights(x, "relu", "l2", revive=True)
    assert_close(weights, torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]))
    (grad,) = torch.autograd.grad(weights[:, 0].sum(), x)
    # across its own direction, for its length is nothing that could be learned; what is silent
    # gets the gradient as it is
    assert_close(grad, torch.tensor([[0.64 / 5, 0.0, -0.48 / 5], [1.0, 0.0, 0.0]]))
    released = column_weights(x, "relu", "l2", revive=False)
    (grad,) = torch.autograd.grad(released[1].sum(), x)
    assert not grad.any()
    weights = column_weights(x, "softplus", "l2", revive=False)
    assert (weights > 0).all()
    assert_close(weights.norm(dim=-1)[0], torch.tensor(1.0))


def test_identity_keeps_signs() -> None:
    x = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    weights = column_weights(x, "identity", "l2", revive=True)
    assert_close(weights, torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.0, 0.0]]))
    (grad,) = torch.autograd.grad(weights.sum(), x)
    assert grad.isfinite().all()
    assert bool(grad.any(-1).all())
    message = r"identity.*qk_norm='sum'.*pass qk_norm='l2', or feature_map='relu'"
    with pytest.raises(ValueError, match=message):
        SHM(8, 8, feature_map="identity")


def test_the_gradient_of_a_key_that_is_nearly_silent_is_bounded() -> None:
    x = torch.tensor([[1e-4, 1e-4, -1.0]], requires_grad=True)
    for qk_norm, low, high in (("sum", 1e3, 1e4), ("l2", 9.0, 11.0)):
        weights = column_weights(x, "relu", qk_norm, revive=True)
        (grad,) = torch.autograd.grad(weights[0, 0], x)
        assert low < grad.norm() < high
    # where its length counts as more, it is shorter than one
    assert column_weights(x, "relu", "l2", revive=True).norm() < 0.01


@pytest.mark.parametrize(
    ("feature_map", "qk_norm"), [("softplus", "sum"), ("relu", "l2"), ("identity", "l2")]
)
def test_steps_with_other_keys_are_those_of_the_sequence(
    feature_map: FeatureMap, qk_norm: QKNorm
) -> None:
    torch.manual_seed(0)
    cell = make(feature_map=feature_map, qk_norm=qk_norm)
    x, memory, _ = make_inputs()
    y, end, theta_index = cell(x, memory)
    assert theta_index is not None
    for t in range(x.shape[1]):
        step, memory, _ = cell.step(x[:, t], memory, theta_index[:, t])
        assert_close(step, y[:, t])
    assert_close(memory, end)
    gradients = torch.autograd.grad(y.sum(), [cell.key.weight, cell.query.weight])
    if feature_map != "relu":
        # every column of every key is learned
        assert all(bool((gradient != 0).all()) for gradient in gradients)


@pytest.mark.parametrize("name", ["key", "query"])
def test_what_is_silent_is_learned_again(name: str) -> None:
    """A key or query that is zero finds its column, and without `revive` nothing at all."""
    torch.manual_seed(0)
    cell: Any = SHM(5, 3, memory_size=6, calibration="none", shortcut=False, dtype=torch.float64)
    x, memory = torch.randn(1, 1, 5, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    # written and read in the third column alone
    column = torch.tensor([[-1.0], [-1.0], [1.0], [-1.0], [-1.0], [-1.0]], dtype=torch.float64)
    target = copy.deepcopy(cell)
    with torch.no_grad():
        for layer in (target.key, target.query):
            layer.weight.copy_(column * target.norm(x[0]))
    wanted = target(x, memory[None])[0].detach()
    ends: dict[bool, float] = {}
    for revive in (True, False):
        cell = copy.deepcopy(target)
        cell.revive = revive
        weight = getattr(cell, name).weight
        with torch.no_grad():
            weight.copy_(-0.1 * column.abs() * cell.norm(x[0]))
        start = weight.detach().clone()
        optimizer = torch.optim.Adam([weight], lr=0.01)
        losses: list[float] = []
        for _ in range(100):
            loss = (cell(x, memory[None])[0] - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        ends[revive] = losses[-1] / losses[0]
        assert weight.equal(start) is not revive
    assert ends[True] < 0.05
    assert ends[False] == 1.0


@every_calibration
def test_reset_parameters_draws_all_again(calibration: Calibration) -> None:
    torch.manual_seed(1)
    cell = make(calibration)
    before = copy.deepcopy(cell.state_dict())
    cell.reset_parameters()
    changed = {key for key, value in cell.state_dict().items() if not value.equal(before[key])}
    assert changed == before.keys() - {"norm.weight", "norm.bias"}


def test_sizes_are_shown() -> None:
    shown = (
        "memory_size=6, num_theta=7, calibration='random', span=None, forget=False, feature_map="
    )
    assert f"{shown}'relu', qk_norm='sum', revive=True, clamp=None" in repr(make())


# precision


@every_calibration
def test_bfloat16_parameters_keep_a_float32_memory(calibration: Calibration) -> None:
    cell = make(calibration, dtype=torch.bfloat16)
    exact = copy.deepcopy(cell).double()
    x, memory, is_init = make_inputs(dtype=torch.bfloat16)
    y, final, index = cell(x, memory.float(), is_init)
    expected = exact(x.double(), memory.double(), is_init, index)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    # three rounded layers in a row
    assert_close(y.double(), expected[0], rtol=0.05, atol=0.05)
    assert_close(final.double(), expected[1], rtol=0.05, atol=0.05)
    step = cell.step(x[:, 0], memory.float())
    assert (step[0].dtype, step[1].dtype) == (torch.bfloat16, torch.float32)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in cell.parameters())


def test_autocast_rounds_the_outputs_and_keeps_gradients() -> None:
    cell = make(dtype=torch.float32)
    x, memory, is_init = make_inputs(dtype=torch.float32)
    expected = cell(x, memory, is_init)
    with torch.autocast("cpu", torch.bfloat16):
        y, final, _ = cell(x, memory, is_init, expected[2])
    assert_close(y.float(), expected[0], rtol=0.05, atol=0.05)
    assert_close(final, expected[1], rtol=0.05, atol=0.05)
    assert not torch.equal(y.float(), expected[0])
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cell.parameters())


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clamp": -1.0}, "clamp=-1.0 must be positive, or None for no bound"),
        ({"clamp": math.nan}, "clamp=nan must be positive"),
        ({"clamp": True}, "clamp=True must be positive"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"input_size": 5, "output_size": 3}
    with pytest.raises(ValueError, match=re.escape(message)):
        SHM(**sizes | options)


@pytest.mark.parametrize(
    ("size", "left"), [(1, "nothing of one feature"), (2, "only a sign of two features")]
)
def test_few_features_are_refused(size: int, left: str) -> None:
    message = (
        f"input_size={size}: this memory begins with a LayerNorm, which leaves {left}. Embed "
        f"first, e.g. with torch.nn.Sequential(torch.nn.Linear({size}, 32), torch.nn.Tanh()), or "
        "pass norm=False"
    )
    for make_memory in (SHM, partial(SHMModule, in_key="x", out_key="y")):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make_memory(size, 4)
        with pytest.raises(ValueError, match="input_size must be at least 1"):
            make_memory(0, 4)
        make_memory(size, 4, norm=False)


def test_only_two_sizes_go_by_position() -> None:
    too_many: Any = (5, 3, 6)
    with pytest.raises(TypeError, match=r"takes 3 positional arguments but 4 were given"):
        SHM(*too_many)


def test_theta_index_is_checked() -> None:
    with pytest.raises(ValueError, match=r"theta_index is torch.float32 of shape \[2, 11\]"):
        make()(make_inputs()[0], theta_index=torch.zeros(2, 11))


# claims of the paper: Le et al., Stable Hadamard Memory (ICLR 2025)


def paired(steps: int, noise: float, batch: int) -> tuple[Any, Any, Tensor]:
    """A random and a fixed theta, and inputs that hardly change within a sequence."""
    random, fixed = make("random", num_theta=20), make("fixed")
    with torch.no_grad():
        # a table whose rows add up to nothing, as in the mean over all tables
        half = 0.3 * torch.rand(10, 6, dtype=torch.float64)
        random.theta.copy_(torch.cat([half, -half]))
        fixed.theta.fill_(0.15)
    x = torch.randn(batch, 1, 5, dtype=torch.float64).expand(-1, steps, -1)
    return random, fixed, x + noise * torch.randn_like(x.contiguous())


def test_random_gates_neither_vanish_nor_explode_on_average() -> None:
    """E[prod C] = 1 for independent theta, even where the inputs repeat."""
    random, fixed, x = paired(steps=30, noise=0.0, batch=4000)
    product = gate(random, x)
    # of 36 means, none strays further than 5 standard errors but once in fifty thousand runs
    error = product.std(0) / math.sqrt(len(x))
    assert error.max() < 0.03
    assert ((product.mean(0) - 1).abs() < 5 * error).all()
    # although single products are far from 1
    assert product.std() > 0.3

    constant = gate(fixed, x)
    assert (constant.mean(0) - 1).abs().min() > 0.3


def test_random_gates_of_two_steps_are_not_correlated() -> None:
    """Pearson correlation of z_t and z_t' is that of the inputs only if theta is fixed."""
    random, fixed, x = paired(steps=2, noise=0.3, batch=4000)

    def correlation(cell: SHM) -> Tensor:
        z = [torch.atanh(gate(cell, x[:, t]) - 1) for t in (0, 1)]
        first, second = ((a - a.mean(0)) / a.std(0) for a in z)
        return (first * second).mean(0)

    assert correlation(fixed).min() > 0.7
    # 36 coefficients with a standard error of 1 / sqrt(4000)
    assert correlation(random).abs().max() < 5 / math.sqrt(4000)
