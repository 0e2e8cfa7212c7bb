"""The frame stack: against a loop that keeps a list of frames, and what it cannot see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.modules._helpers import assert_same, make_inputs
from torchrl_shm.modules.frame_stack import FrameStack
from torchrl_shm.modules.mlp import make_mlp


def make(num_frames: int = 4) -> Any:
    return FrameStack(3, 5, hidden_size=7, num_frames=num_frames, dtype=torch.float64)


@pytest.mark.parametrize("num_frames", [2, 4, 15])
def test_equals_the_mlp_on_frames_kept_in_a_list(num_frames: int) -> None:
    cell = make(num_frames)
    x, memory, is_init = make_inputs(cell, 4)
    mlp: Any = make_mlp(3 * num_frames, 5, hidden_size=7, in_key="frames", out_key="y").double()
    mlp.load_state_dict(
        dict(zip(mlp.state_dict(), cell.state_dict().values(), strict=True)), assign=True
    )
    windows, pasts = [], []
    for b in range(4):
        frames = list(memory[b])
        for t in range(11):
            if is_init[b, t]:
                frames = [x.new_zeros(3)] * (num_frames - 1)
            frames = [*frames[-num_frames + 1 :], x[b, t]]
            windows.append(torch.cat(frames))
        pasts.append(torch.stack(frames[1:]))
    data = TensorDict({"frames": torch.stack(windows).view(4, 11, -1)}, [4, 11])
    expected = mlp(data)["y"], torch.stack(pasts)

    inputs = [[x, memory, *module.parameters()] for module in (cell, mlp)]
    assert_same(cell(x, memory, is_init)[:2], expected, *inputs)


def test_one_frame_is_no_memory() -> None:
    with pytest.raises(ValueError, match=r"num_frames=1 must be at least 2; .* use make_mlp"):
        make(1)
