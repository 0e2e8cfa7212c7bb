"""Typed configuration of the recipes, derived from the signatures of what it composes."""

from torchrl_shm.configs.algo import PPO
from torchrl_shm.configs.compose import (
    add_memory,
    instantiate_saved,
    register,
    run_recipe,
    save_config,
)
from torchrl_shm.configs.memories import MEMORIES, memory_config
from torchrl_shm.configs.sizes import SIZES

__all__ = [
    "MEMORIES",
    "PPO",
    "SIZES",
    "add_memory",
    "instantiate_saved",
    "memory_config",
    "register",
    "run_recipe",
    "save_config",
]
