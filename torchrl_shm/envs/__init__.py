"""Batched environments whose whole state is tensors."""

from torchrl_shm.envs.wind import WindEnv

__all__ = ["WindEnv"]
