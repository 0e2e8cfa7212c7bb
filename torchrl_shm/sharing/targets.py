"""What a `config.json` from a stranger may build: memories, and tasks of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hydra_zen.funcs import get_obj
from omegaconf import OmegaConf

from torchrl_shm.configs.groups import MEMBERS

# how hydra-zen writes a class as a value
_CLASS = "hydra_zen.funcs.get_obj"


def check_targets(config: Any, group: Literal["memory", "env"], path: Path) -> None:
    """Refuse a configuration that has interpolations or would build anything but one kind of part.

    Args:
        config: the configuration.
        group: what it may build: memories, or the tasks of `torchrl_shm`.
        path: file that it comes from.

    Raises:
        ValueError: it is no configuration, has interpolations, or names something that is neither
            a member of the group in `torchrl_shm` nor a memory that `add_memory` was given in this
            process.
    """
    if not OmegaConf.is_dict(config):
        raise ValueError(f"{path} does not describe its {group}: it is {config!r}")
    plain = OmegaConf.to_container(config, resolve=False)
    # looked for after parsing, because a file can spell it with escapes
    if "${" in repr(plain):
        raise ValueError(f"{path} has interpolations, which a shared policy never has")
    allowed = {
        target
        for name, member in MEMBERS.items()
        if name.startswith(f"{group}/")
        for target in _targets(OmegaConf.to_container(OmegaConf.structured(member.make())))
        # functions make environments of other packages, by a name that can import anything
        if group == "memory" or isinstance(get_obj(path=target), type)
    }
    kind = {
        "memory": "memories of torchrl_shm are accepted, and those add_memory was given before",
        "env": "the tasks of torchrl_shm are accepted; for others make the environment yourself "
        "and call evaluate(load_policy(folder).module, env)",
    }[group]
    for target in _targets(plain):
        # exactly these: other functions of the same modules may do harm
        if target not in allowed:
            raise ValueError(f"{path} would build {target!r}; only {kind}")


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
