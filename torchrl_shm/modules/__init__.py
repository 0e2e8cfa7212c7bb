"""Memories: cells on plain tensors, and the TensorDict modules around them."""

from torchrl_shm.modules._features import FeatureMap, QKNorm
from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.modules.check import MemoryCheckError, MemoryReport, check_memory
from torchrl_shm.modules.dnc import DNC
from torchrl_shm.modules.elman import Elman
from torchrl_shm.modules.factory import make_memory
from torchrl_shm.modules.fast_weights import FastWeights
from torchrl_shm.modules.ffm import FFM
from torchrl_shm.modules.frame_stack import FrameStack
from torchrl_shm.modules.gpt2 import GPT2
from torchrl_shm.modules.lean import MemoryPrimer, State
from torchrl_shm.modules.linear_attention import LinearAttention
from torchrl_shm.modules.lru import LRU
from torchrl_shm.modules.measure import MemorySize, measure_memory
from torchrl_shm.modules.memory_module import MemoryCell, MemoryModule
from torchrl_shm.modules.mlp import make_mlp
from torchrl_shm.modules.mlstm import MLSTM
from torchrl_shm.modules.ntm import NTM
from torchrl_shm.modules.rnn import GRU, LSTM
from torchrl_shm.modules.s6 import S6
from torchrl_shm.modules.shm import SHM, Calibration
from torchrl_shm.modules.shm_module import SHMModule
from torchrl_shm.modules.unrolling import unroll
from torchrl_shm.renamed import refuse_old_name

__all__ = [
    "DNC",
    "FFM",
    "GPT2",
    "GRU",
    "LRU",
    "LSTM",
    "MLSTM",
    "NTM",
    "S6",
    "SHM",
    "BaseCell",
    "Calibration",
    "Elman",
    "FastWeights",
    "FeatureMap",
    "FrameStack",
    "LinearAttention",
    "MemoryCell",
    "MemoryCheckError",
    "MemoryModule",
    "MemoryPrimer",
    "MemoryReport",
    "MemorySize",
    "QKNorm",
    "SHMModule",
    "State",
    "check_memory",
    "make_memory",
    "make_mlp",
    "measure_memory",
    "unroll",
]


def __getattr__(name: str) -> object:
    return refuse_old_name(__name__, name)
