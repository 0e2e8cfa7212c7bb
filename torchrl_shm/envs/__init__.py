"""Batched environments whose whole state is tensors."""

from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import (
    TEST_SEED,
    Entry,
    Plane,
    Split,
    State,
    Transition,
    ask_env,
)
from torchrl_shm.envs.gym import make_gym_env, make_popgym_env
from torchrl_shm.envs.key_to_door import KeyToDoorEnv
from torchrl_shm.envs.memory_length import MemoryLengthEnv
from torchrl_shm.envs.point_robot import PointRobotEnv
from torchrl_shm.envs.t_maze import TMazeEnv
from torchrl_shm.envs.visual_match import VisualMatchEnv
from torchrl_shm.envs.wind import WindEnv

__all__ = [
    "TEST_SEED",
    "BatchedEnv",
    "Entry",
    "KeyToDoorEnv",
    "MemoryLengthEnv",
    "Plane",
    "PointRobotEnv",
    "Split",
    "State",
    "TMazeEnv",
    "Transition",
    "VisualMatchEnv",
    "WindEnv",
    "ask_env",
    "make_gym_env",
    "make_popgym_env",
]
