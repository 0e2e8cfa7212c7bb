"""Batched environments whose whole state is tensors."""

from torchrl_shm.envs.gym import make_gym_env, make_popgym_env
from torchrl_shm.envs.key_to_door import KeyToDoorEnv
from torchrl_shm.envs.memory_length import MemoryLengthEnv
from torchrl_shm.envs.point_robot import PointRobotEnv
from torchrl_shm.envs.t_maze import TMazeEnv
from torchrl_shm.envs.visual_match import VisualMatchEnv
from torchrl_shm.envs.wind import WindEnv

__all__ = [
    "KeyToDoorEnv",
    "MemoryLengthEnv",
    "PointRobotEnv",
    "TMazeEnv",
    "VisualMatchEnv",
    "WindEnv",
    "make_gym_env",
    "make_popgym_env",
]
