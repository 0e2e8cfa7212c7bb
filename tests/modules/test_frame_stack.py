"""The frame stack: against a loop that keeps a list of frames, and what it cannot see."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import EXACT
from torchrl_shm.modules.baselines import make_mlp
from torchrl_shm.modules.frame_stack import FrameStack


def make(num_frames: int = 4, **options: Any) -> Any:
    return FrameStack(3, 5, 7, num_frames=num_frames, **{"dtype": torch.float64} | options)


def make_inputs(cell: FrameStack) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, initial memory and resets."""
    x = torch.randn(4, 11, 3, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(4, *cell.memory_shape, dtype=torch.float64, requires_grad=True)
    is_init = torch.rand(4, 11) < 0.2
    is_init[0, 0] = is_init[1, 5] = is_init[1, 6] = True
    is_init[2] = False
    return x, memory, is_init


@pytest.mark.parametrize("num_frames", [2, 4, 15])
def test_equals_the_mlp_on_frames_kept_in_a_list(num_frames: int) -> None:
    cell = make(num_frames)
    x, memory, is_init = make_inputs(cell)
    mlp: Any = make_mlp(3 * num_frames, 5, hidden_size=7, in_key="frames", out_key="y").double()
    mlp.load_state_dict(
        dict(zip(mlp.state_dict(), cell.state_dict().values(), strict=True)), assign=True
    )
    rows, pasts = [], []
    for b in range(4):
        frames = list(memory[b])
        for t in range(11):
            if is_init[b, t]:
                frames = [x.new_zeros(3)] * (num_frames - 1)
            frames = [*frames[-num_frames + 1 :], x[b, t]]
            rows.append(torch.cat(frames))
        pasts.append(torch.stack(frames[1:]))
    data = TensorDict({"frames": torch.stack(rows).view(4, 11, -1)}, [4, 11])
    expected = mlp(data)["y"], torch.stack(pasts)

    y, final, _ = cell(x, memory, is_init)
    assert_close((y, final), expected, **EXACT)
    towards = [torch.randn_like(y), torch.randn_like(final)]
    actual = torch.autograd.grad([y, final], [x, memory, *cell.parameters()], towards)
    wanted = torch.autograd.grad(expected, [x, memory, *mlp.parameters()], towards)
    assert_close(actual, wanted, **EXACT)


def test_nothing_older_is_seen() -> None:
    cell = make(4)
    x, _, _ = make_inputs(cell)
    (gradient,) = torch.autograd.grad(cell(x)[0][:, 9].sum(), x)
    seen = gradient.abs().amax((0, 2)) > 0
    assert seen.nonzero().flatten().tolist() == [6, 7, 8, 9]


def test_frames_are_kept_oldest_first() -> None:
    cell = make(4)
    x, _, _ = make_inputs(cell)
    assert torch.equal(cell(x)[1], x[:, -3:])
    assert torch.equal(cell(x[:, :1])[1], torch.cat([torch.zeros_like(x[:, :2]), x[:, :1]], 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 1}, "num_frames=1 must be at least 2; for the current input alone use "),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FrameStack(3, 5, **options)
