"""The scan of Stable Hadamard Memory: its definition, and faster backends that agree with it.

`scan` and `step` check their arguments and call the backend that `dispatch` chooses.
`reference` is the definition. `operator` makes the fast backends (`chunked`, `numba_scan`,
`triton_scan`) one operator of torch; `backend` says what such a backend is.
"""

from torchrl_shm.ops.shm.dispatch import Backend, StepBackend
from torchrl_shm.ops.shm.scan import shm_scan
from torchrl_shm.ops.shm.step import shm_step

__all__ = ["Backend", "StepBackend", "shm_scan", "shm_step"]
