"""The command that trains a run again, from the values of its configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from torchrl_shm.configs.compose import register

# a recipe belongs to its algorithm
_RECIPES = {"torchrl_shm.configs.algo.PPO": ("ppo_shm", "ppo")}
# neither name nor place of a run change what it learns
_LEFT_OUT = ("names", "run_dir", "logger", "resume")


def training_command(config: DictConfig) -> str | None:
    """Name every value that differs from the defaults of the task and the memory.

    Args:
        config: the `config.yaml` of a run.

    Returns:
        The command, or `None` where the recipe, the task or the memory is not of this package.
    """
    saved: Any = OmegaConf.to_container(config, resolve=True)
    recipe, algo = _RECIPES.get(saved["algo"].get("_target_"), ("", ""))
    if not recipe:
        return None
    choices = [f"{group}={saved['names'][group]}" for group in ("env", "memory")]
    # outside of a run there is no Hydra to ask for names and folders
    fixed = [f"names.{choice}" for choice in choices] + ["run_dir=''"]
    register(recipe, algo=algo)
    # inside of a recipe Hydra is at work already
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            composed = compose(recipe, [*choices, *fixed])
            default: Any = OmegaConf.to_container(composed, resolve=True)
    except HydraException:
        return None
    finally:
        GlobalHydra.instance().hydra = before
    kept = {key: value for key, value in saved.items() if key not in _LEFT_OUT}
    changed = _changes(kept, default)
    return shlex.join(["python", f"recipes/{recipe}.py", *choices, *changed])


def _changes(saved: dict[str, Any], default: dict[str, Any], path: str = "") -> Iterator[str]:
    """Overrides that make `saved` of `default`."""
    for key, value in saved.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            yield from _changes(value, default[key], f"{path}{key}.")
        elif key not in default or value != default[key]:
            plus = "" if key in default else "+"
            yield f"{plus}{path}{key}={json.dumps(value, separators=(',', ':'))}"
