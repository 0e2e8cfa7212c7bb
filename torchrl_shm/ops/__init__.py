"""The operation under Stable Hadamard Memory: tensors in, tensors out.

Needs torch only; neither torchrl nor tensordict is imported here.
"""

from torchrl_shm.ops._dispatch import Backend, shm_scan, shm_step

__all__ = ["Backend", "shm_scan", "shm_step"]
