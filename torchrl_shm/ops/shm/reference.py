"""The definition: the equations, one line each, in a loop over time.

It is slow and can be differentiated any number of times. Every other backend is tested against it
in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.ops.shm.backend import Vectors


def scan(
    vectors: Vectors, memory: Tensor, is_init: Tensor | None, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; arguments as in `torchrl_shm.ops.shm_scan`, already validated."""
    theta, vc, v, k, q = vectors
    outputs: list[Tensor] = []
    for t in range(theta.shape[1]):
        if is_init is not None:
            # selection, not multiplication: 0 * NaN would carry the NaN over the reset
            memory = torch.where(is_init[:, t, None, None], 0.0, memory)
        calibration = 1 + torch.tanh(theta[:, t, :, None] * vc[:, t, None, :])
        update = v[:, t, :, None] * k[:, t, None, :]
        memory = memory * calibration + update
        if clamp is not None:
            memory = memory.clamp(-clamp, clamp)
        outputs.append((memory * q[:, t, None, :]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else v.clone()  # T = 0: empty, but part of the graph
    return y, memory
