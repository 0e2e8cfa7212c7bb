"""Typed configuration of the recipes, derived from the signatures of what it composes."""

from torchrl_shm.configs.algo import PPO
from torchrl_shm.configs.compose import add_memory, register, run_on_run, run_recipe
from torchrl_shm.configs.memories import MEMORIES, memory_config
from torchrl_shm.configs.saved import instantiate_saved, load_config, save_config
from torchrl_shm.configs.sizes import SIZES

__all__ = [
    "MEMORIES",
    "PPO",
    "SIZES",
    "add_memory",
    "instantiate_saved",
    "load_config",
    "memory_config",
    "register",
    "run_on_run",
    "run_recipe",
    "save_config",
]
