"""The operation under Stable Hadamard Memory, and those of its peers: tensors in, tensors out.

Needs torch only; neither torchrl nor tensordict is imported here.
"""

from torchrl_shm.ops.linear_scan import linear_scan
from torchrl_shm.ops.matrix_scan import delta_scan, gated_scan
from torchrl_shm.ops.shm import Backend, StepBackend, shm_scan, shm_step
from torchrl_shm.ops.windows import causal_windows

__all__ = [
    "Backend",
    "StepBackend",
    "causal_windows",
    "delta_scan",
    "gated_scan",
    "linear_scan",
    "shm_scan",
    "shm_step",
]
