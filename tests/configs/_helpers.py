"""Composing a recipe's configuration without running it."""

from hydra import compose, initialize
from omegaconf import DictConfig

from torchrl_shm.configs import register


def compose_recipe(
    *overrides: str, recipe: str = "recipe", algo: str = "ppo", network: str = "actor_critic"
) -> DictConfig:
    register(recipe, algo=algo, network=network)
    # outside of a run there is no Hydra to ask for names and folders
    fixed = ("experiment.names={env: wind, memory: shm}", "experiment.run_dir=run")
    with initialize(version_base="1.3", config_path=None):
        return compose(recipe, [*fixed, *overrides])
