"""Typed configuration of the recipes, derived from the signatures of what it composes."""

from torchrl_shm.configs.algo import PPO
from torchrl_shm.configs.compose import instantiate_saved, register, run_recipe, save_config

__all__ = ["PPO", "instantiate_saved", "register", "run_recipe", "save_config"]
