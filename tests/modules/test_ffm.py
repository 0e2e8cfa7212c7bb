"""The FFM cell: the authors' numbers, the equations of the paper, its initialization."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.ffm import FFM

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}


def make(**options: Any) -> FFM:
    torch.manual_seed(0)
    return FFM(3, 5, memory_size=6, context_size=4, dtype=torch.float64, **options)


def wave(*shape: int, start: float) -> Tensor:
    """Numbers that the recording and this test make alike."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


def test_equals_the_released_code() -> None:
    # recorded from standalone/ffm of proroklab/ffm at b3f94d2, in float64: without its cast of the
    # state to complex64
    cell = FFM(2, 2, memory_size=2, context_size=3, dtype=torch.float64)
    with torch.no_grad():
        for n, parameter in enumerate([*cell.pre.parameters(), *cell.mix.parameters()]):
            parameter.copy_(wave(*parameter.shape, start=10 * n))
        cell.alpha.copy_(torch.tensor([0.5, 0.1], dtype=torch.float64))
        cell.omega.copy_(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64))
    x = wave(1, 5, 2, start=50).requires_grad_()
    memory = wave(1, 2, 3, 2, start=60).requires_grad_()
    y, last, _ = cell(x, memory)
    (y.square().sum() + last.square().sum()).backward()
    # fmt: off
    recorded = [
        (y, [
            0.07612566833885964, 0.3282607320383227, -1.4356752253687075, 0.7427343235761388,
            0.10850043765980655, 0.03061532627946209, -0.7992602043832346, 0.8867455357253432,
            -1.570456628384939, 0.8276496786911456,
        ]),
        (last, [
            -0.23601257235350348, -0.22826744206879448, 0.09810584983746792, -0.2394726841881986,
            0.12355620240241752, 0.046764634883735806, -1.3786024562418402, -1.3464817611853246,
            0.1194402839774831, -0.936007858446526, 1.0659666611719298, -0.965662860892674,
        ]),
        (x.grad, [
            -2.4007966015643625, -1.0215479587266418, 1.1859162888490884, 1.982900295781043,
            -3.927753707936527, -1.6422266341832912, -4.931482201154441, -1.4532023261993787,
            1.7193808283964342, 2.134190310178926,
        ]),
        (memory.grad, [
            -0.040115072681438955, 0.03595333751564536, 0.042354076937164926,
            0.004350288403817899, -0.021193130236746, 0.0047003817583065426, -1.747455635844844,
            1.5524486985038615, 1.1301149694825516, -0.18286247071058206, -0.4478207151360772,
            1.6866319315396872,
        ]),
        # the released parameter is the negative of ours
        (cell.alpha.grad, [-0.5270725737955786, -21.32048591261264]),
        (cell.omega.grad, [-7.5046294097405735, -1.3479518257046834, 5.8284470710405]),
        (cell.pre.bias.grad, [
            -0.815940005214637, -10.48380621776558, -4.409219832758131, 3.158835302335365,
            0.202706323173184, 3.9407828782327456, -0.9295980348098748, 0.17000112842257958,
        ]),
        (cell.mix.bias.grad, [0.0005313382203462613, -0.0005313382203442352]),
    ]
    # fmt: on
    for actual, numbers in recorded:
        assert actual is not None
        assert_close(actual.flatten(), torch.tensor(numbers, dtype=torch.float64), **CLOSE)


def reference(cell: FFM, x: Tensor, memory: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """The equations of section 4, step by step, with numbers of real and imaginary part."""
    m, o = cell.memory_size, cell.output_size
    shrink = torch.exp(-cell.alpha.abs())[:, None]
    re_factor, im_factor = shrink * torch.cos(cell.omega), shrink * torch.sin(cell.omega)
    re, im = memory[..., 0], memory[..., 1]
    w, b = cell.pre.weight, cell.pre.bias
    rows = [slice(0, m), slice(m, m + o), slice(m + o, 2 * m + o), slice(2 * m + o, None)]
    outputs = []
    for t in range(x.shape[1]):
        value, skip, gate_in, gate_out = (x[:, t] @ w[r].T + b[r] for r in rows)
        heard = value / (1 + torch.exp(-gate_in))
        first = is_init[:, t, None, None]
        re, im = torch.where(first, 0, re), torch.where(first, 0, im)
        re, im = re * re_factor - im * im_factor, re * im_factor + im * re_factor
        re = re + heard[:, :, None]
        packed = torch.stack([re, im], -1).reshape(len(x), -1)
        z = packed @ cell.mix.weight.T + cell.mix.bias
        centered = z - z.mean(-1, keepdim=True)
        z = centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + 1e-5)
        gate = 1 / (1 + torch.exp(-gate_out))
        outputs.append(z * gate + skip * (1 - gate))
    return torch.stack(outputs, 1), torch.stack([re, im], -1)


@pytest.mark.parametrize("steps", [1, 30])
def test_equals_the_equations(steps: int) -> None:
    cell = make(max_period=20.0)
    x, memory, is_init = make_inputs(cell, steps=steps)
    expected = reference(cell, x, memory, is_init)
    actual = cell(x, memory, is_init)[:2]
    assert_same(actual, expected, [x, memory, *cell.parameters()], **CLOSE)


def test_initial_decays_and_periods() -> None:
    cell = FFM(3, 5, memory_size=7, context_size=4, dtype=torch.float64)
    # what the released code derives from the largest float64, for 1024 steps
    fastest = math.log(torch.finfo(torch.float64).max) / 1024 - 0.02
    slowest = -math.log(0.01) / 1024
    decays = [fastest + (slowest - fastest) * i / 6 for i in range(7)]
    assert_close(cell.alpha.tolist(), decays, **CLOSE)
    periods = [1 + 1023 * j / 3 for j in range(4)]
    assert_close((2 * math.pi / cell.omega).tolist(), periods, **CLOSE)


def test_options_of_the_initialization() -> None:
    cell = make(min_period=2.0, max_period=50.0, max_decay=0.9, forgotten_at=0.1)
    assert cell.alpha[0].item() == pytest.approx(0.9)
    assert math.exp(-50 * cell.alpha[-1].item()) == pytest.approx(0.1)
    assert (2 * math.pi / cell.omega[[0, -1]]).tolist() == pytest.approx([2, 50])
    # never faster than the fastest
    assert make(max_period=2.0).alpha.tolist() == pytest.approx([math.log(2) - 0.02] * 6)


def test_the_memory_fades_wherever_alpha_is_led() -> None:
    cell = make()
    x, memory = torch.randn(1, 9, 3, dtype=torch.float64), None
    expected = cell(x, memory)[:2]
    with torch.no_grad():
        cell.alpha.neg_()
    assert_close(cell(x, memory)[:2], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_period": 0.0},
            r"min_period=0.0 and max_period=1024.0 must be positive and in order",
        ),
        ({"max_period": 0.5}, r"min_period=1.0 and max_period=0.5 must be positive and in order"),
        ({"max_decay": 0.0}, r"max_decay=0.0 must be positive"),
        ({"forgotten_at": 1.0}, r"forgotten_at=1.0 must lie between 0 and 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFM(3, 5, **options)
