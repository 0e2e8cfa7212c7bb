"""Memories: cells on plain tensors, and the TensorDict modules around them."""

from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.modules.baselines import make_gru, make_lstm, make_mlp
from torchrl_shm.modules.check import MemoryCheckError, MemoryReport, check_memory
from torchrl_shm.modules.memory_module import MemoryCell, MemoryModule
from torchrl_shm.modules.row_start import MemoryPrimer, State
from torchrl_shm.modules.shm import SHM, Calibration
from torchrl_shm.modules.shm_module import SHMModule

__all__ = [
    "SHM",
    "BaseCell",
    "Calibration",
    "MemoryCell",
    "MemoryCheckError",
    "MemoryModule",
    "MemoryPrimer",
    "MemoryReport",
    "SHMModule",
    "State",
    "check_memory",
    "make_gru",
    "make_lstm",
    "make_mlp",
]
