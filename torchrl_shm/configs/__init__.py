"""Typed configuration of the recipes, derived from the signatures of what it composes."""

from torchrl_shm.configs.algo import GRPO, PPO, SAC, Reinforce
from torchrl_shm.configs.compose import add_algo, add_env, add_memory, register, run_recipe
from torchrl_shm.configs.envs import ENVS, env_config
from torchrl_shm.configs.memories import MEMORIES, memory_config
from torchrl_shm.configs.saved import instantiate_saved, load_config
from torchrl_shm.configs.sizes import SIZES
from torchrl_shm.configs.suites import SUITES, SuiteRun
from torchrl_shm.configs.tuned import TUNED
from torchrl_shm.renamed import refuse_old_name

__all__ = [
    "ENVS",
    "GRPO",
    "MEMORIES",
    "PPO",
    "SAC",
    "SIZES",
    "SUITES",
    "TUNED",
    "Reinforce",
    "SuiteRun",
    "add_algo",
    "add_env",
    "add_memory",
    "env_config",
    "instantiate_saved",
    "load_config",
    "memory_config",
    "register",
    "run_recipe",
]


def __getattr__(name: str) -> object:
    return refuse_old_name(__name__, name)
