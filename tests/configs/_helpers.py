"""Composing a recipe's configuration without running it."""

from hydra import compose, initialize
from omegaconf import DictConfig

from torchrl_shm.configs import register

# outside of a run there is no Hydra to ask
_RESOLVED = ("names.env=wind", "names.memory=shm", "run_dir=run")


def compose_recipe(*overrides: str) -> DictConfig:
    register("recipe", algo="ppo")
    with initialize(version_base="1.3", config_path=None):
        return compose("recipe", [*_RESOLVED, *overrides])
