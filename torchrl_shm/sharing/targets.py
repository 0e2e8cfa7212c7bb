"""What a `config.json` from a stranger may build: memories, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from torchrl_shm.configs.groups import MEMBERS

# how hydra-zen writes a class as a value
_CLASS = "hydra_zen.funcs.get_obj"


def check_memory_targets(config: Any, path: Path) -> None:
    """Refuse a configuration that has interpolations or would build anything but memories.

    Args:
        config: the configuration of a memory.
        path: file that it comes from.

    Raises:
        ValueError: it has interpolations, or names something that is neither a memory of
            `torchrl_shm` nor one that `add_memory` was given in this process.
    """
    plain = OmegaConf.to_container(config, resolve=False)
    # looked for after parsing, because a file can spell it with escapes
    if "${" in repr(plain):
        raise ValueError(f"{path} has interpolations, which a shared policy never has")
    allowed = {
        target
        for name, member in MEMBERS.items()
        if name.startswith("memory/")
        for target in _targets(OmegaConf.to_container(OmegaConf.structured(member.make())))
    }
    for target in _targets(plain):
        # exactly these: other functions of the same modules may do harm
        if target not in allowed:
            raise ValueError(
                f"{path} would build {target!r}; only memories of torchrl_shm are accepted, and "
                "those that add_memory was given before"
            )


def _targets(config: Any) -> Iterator[str]:
    """What a configuration would build, at any depth of it."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("_target_", "_zen_target"):
                # a class that is passed as a value counts by its own path
                yield str(config.get("path") if value == _CLASS else value)
            else:
                yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)
