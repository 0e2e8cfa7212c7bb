"""Stable Hadamard Memory for TorchRL: a matrix memory for agents that cannot see everything.

Names are loaded when they are first used, so importing this package is quick and needs no more
than what you use of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchrl_shm.envs import (
        KeyToDoorEnv,
        MemoryLengthEnv,
        PointRobotEnv,
        TMazeEnv,
        VisualMatchEnv,
        WindEnv,
    )
    from torchrl_shm.modules import (
        SHM,
        MemoryCheckError,
        MemoryModule,
        MemoryReport,
        SHMModule,
        check_memory,
        unroll,
    )
    from torchrl_shm.ops import shm_scan, shm_step

    __version__: str

__all__ = [
    "SHM",
    "KeyToDoorEnv",
    "MemoryCheckError",
    "MemoryLengthEnv",
    "MemoryModule",
    "MemoryReport",
    "PointRobotEnv",
    "SHMModule",
    "TMazeEnv",
    "VisualMatchEnv",
    "WindEnv",
    "__version__",
    "check_memory",
    "shm_scan",
    "shm_step",
    "unroll",
]

_HOMES = {
    "KeyToDoorEnv": "torchrl_shm.envs",
    "MemoryCheckError": "torchrl_shm.modules",
    "MemoryLengthEnv": "torchrl_shm.envs",
    "MemoryModule": "torchrl_shm.modules",
    "MemoryReport": "torchrl_shm.modules",
    "PointRobotEnv": "torchrl_shm.envs",
    "SHM": "torchrl_shm.modules",
    "SHMModule": "torchrl_shm.modules",
    "TMazeEnv": "torchrl_shm.envs",
    "VisualMatchEnv": "torchrl_shm.envs",
    "WindEnv": "torchrl_shm.envs",
    "check_memory": "torchrl_shm.modules",
    "shm_scan": "torchrl_shm.ops",
    "shm_step": "torchrl_shm.ops",
    "unroll": "torchrl_shm.modules",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
