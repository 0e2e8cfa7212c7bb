"""The operation under Stable Hadamard Memory: tensors in, tensors out.

Needs torch only; neither torchrl nor tensordict is imported here.
"""

from torchrl_shm.ops._dispatch import Backend, StepBackend
from torchrl_shm.ops._scan import shm_scan
from torchrl_shm.ops._step import shm_step
from torchrl_shm.ops.fla_scan import MatrixBackend
from torchrl_shm.ops.linear_scan import linear_scan
from torchrl_shm.ops.matrix_scan import delta_scan, gated_scan
from torchrl_shm.ops.tuning import tune_scan
from torchrl_shm.ops.windows import causal_windows

__all__ = [
    "Backend",
    "MatrixBackend",
    "StepBackend",
    "causal_windows",
    "delta_scan",
    "gated_scan",
    "linear_scan",
    "shm_scan",
    "shm_step",
    "tune_scan",
]
