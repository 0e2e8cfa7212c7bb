"""The configuration of a run on disk: written, read again only as far as it can be trusted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra_zen import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from torchrl_shm.training.run_folder import is_running, write_atomically

# how hydra-zen writes a class as a value
_CLASS = "hydra_zen.funcs.get_obj"
# where Hydra puts runs and sweeps
_ROOTS = ("outputs", "multirun")
# overrides by which a command says where its runs are
_PLACES = ("hydra.run.dir=", "hydra.sweep.dir=")


def save_config(config: DictConfig, run_dir: str | Path) -> None:
    """Write `config.yaml`, every value resolved.

    Args:
        config: the composed configuration.
        run_dir: folder of the run.
    """
    # a run that is taken up keeps its configuration
    text = OmegaConf.to_yaml(OmegaConf.create(_plain(config) | {"resume": None}))
    write_atomically(Path(run_dir) / "config.yaml", lambda file: file.write(text.encode()))


def load_config(run_dir: str | Path) -> DictConfig:
    """Read the `config.yaml` of a run.

    Args:
        run_dir: folder of the run.

    Returns:
        The configuration, of which every target may be built.

    Raises:
        FileNotFoundError: the folder has no `config.yaml`.
        ValueError: the file is no configuration, has interpolations, or names something to build
            that is neither of this project nor a memory that `add_memory` was given in this
            process; or the folder holds links.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; this must be the folder of a run")
    # whoever goes on with the run would write through them
    for found in (*path.parent.iterdir(), *(path.parent / "checkpoints").glob("*")):
        if found.is_symlink():
            raise ValueError(
                f"{found} is a link, which could lead anywhere; move what it leads to into the "
                "folder of the run"
            )
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is not the configuration of a run")
    check_targets(config, path)
    for name in dict(config.get("names") or {}).values():
        # they are printed, and become part of model cards
        if not re.fullmatch(r"[\w./-]+", str(name)):
            raise ValueError(f"{path} has the name {name!r}, which is not one of a preset")
    return config


def check_targets(
    config: DictConfig, path: Path, *, only: str = "torchrl_shm.", what: str = "targets"
) -> None:
    """Refuse a configuration that would build what is not of this project, or resolve anything.

    Args:
        config: the configuration, or a part of it.
        path: file that it comes from.
        only: where in the project what it builds must be.
        what: what is to be found there.

    Raises:
        ValueError: it has interpolations, or names something that is neither there nor a memory
            that `add_memory` was given in this process.
    """
    # of what was read: in a file the same can be spelled with escapes
    if "${" in json.dumps(OmegaConf.to_container(config, resolve=False), default=str):
        raise ValueError(f"{path} has interpolations, which nothing that is saved has")
    for target in _targets(config):
        # exactly these: other functions of the same modules can do more than their own makers
        elsewhere = target.startswith("torchrl_shm.") and not target.startswith(only)
        if elsewhere or target not in allowed_targets():
            raise ValueError(
                f"{path} would build {target!r}; only {what} of torchrl_shm are accepted, and "
                "memories that add_memory was given before"
            )


def instantiate_saved(run_dir: str | Path) -> dict[str, Any]:
    """Build `env`, `memory` and `algo` of a run from its `config.yaml`.

    Args:
        run_dir: folder of the run.

    Returns:
        The built parts, and `seed` and `names` as they were.

    Raises:
        FileNotFoundError: the folder has no `config.yaml`.
        ValueError: the file names something to build that is neither of this project nor a memory
            that `add_memory` was given in this process.
    """
    return build_parts(load_config(run_dir))


def build_parts(config: DictConfig) -> dict[str, Any]:
    """Build what `instantiate_saved` returns from a configuration that `load_config` read."""
    parts = {name: instantiate(config[name]) for name in ("env", "memory", "algo")}
    return {**parts, "seed": config.seed, "names": OmegaConf.to_container(config.names)}


def take_up(config: DictConfig) -> DictConfig:
    """Replace a composed configuration by that of the run which its `resume` names.

    Args:
        config: the composed configuration of a recipe. `resume` is null, the folder of a run, or
            `"auto"`: the newest run of the same configuration that is not finished.

    Returns:
        The configuration of that run, with `resume` its folder; or `config` itself, with `resume`
        null, if there is none to go on with.

    Raises:
        FileNotFoundError: `resume` is not the folder of a run.
        ValueError: other values are given together with the folder, or its configuration cannot
            be trusted.
    """
    if config.resume is None:
        return config
    if config.resume == "auto":
        folder = _newest_unfinished(config)
    else:
        folder = Path(config.resume)
        _refuse_other_values()
    # only now is it known that Hydra's new folder is not needed
    fresh = Path(config.run_dir)
    if folder is None:
        print("no unfinished run of this configuration; a new one starts", file=sys.stderr)
        config.resume = None
        return config
    saved = load_config(folder)
    if fresh.resolve() != folder.resolve():
        with suppress(OSError):
            # with what holds nothing else, up to where all runs are
            for path in (fresh, *fresh.parents):
                path.rmdir()
                if path.name in _ROOTS:
                    break
    return OmegaConf.merge(saved, {"run_dir": str(folder.resolve()), "resume": str(folder)})  # pyright: ignore


def _refuse_other_values() -> None:
    if not HydraConfig.initialized():
        return
    overrides = HydraConfig.get().overrides.task
    others = [override for override in overrides if not override.startswith("resume=")]
    if others:
        raise ValueError(
            f"resume=<folder> goes on with that run's configuration; leave out {others}, or start "
            "a new run without resume"
        )


def _newest_unfinished(config: DictConfig) -> Path | None:
    own = Path(config.run_dir)
    # the folder that the command leads to is meant, even if its run is finished
    if (own / "config.yaml").exists() and _same(own, config):
        return own
    # and no other, if the command names it
    if any(given.startswith(_PLACES) for given in HydraConfig.get().overrides.hydra):
        return None
    name = HydraConfig.get().job.name
    found = [path.parent for root in _ROOTS for path in (Path(root) / name).glob("**/config.yaml")]
    found.sort(key=lambda path: (path / "config.yaml").stat().st_mtime, reverse=True)
    for path in found:
        if not (path / "summary.json").exists() and _same(path, config) and not is_running(path):
            return path
    return None


def _same(folder: Path, config: DictConfig) -> bool:
    """Whether the folder's run has the configuration, where it writes aside."""
    # the configuration of a run in another version, a damaged one, or one that belongs to somebody
    # else, is another
    with suppress(ValueError, OSError):
        where = {"run_dir": None, "resume": None}
        return _plain(load_config(folder)) | where == _plain(config) | where
    return False


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


@cache
def allowed_targets() -> frozenset[str]:
    """All that the command line can choose, memories that `add_memory` was given included."""
    # imported here, not above: that costs half a second, and training has it anyway
    from torchrl_shm.configs.groups import groups

    nodes: list[Any] = [entry["node"] for entry in groups]
    return frozenset(
        target
        for node in nodes
        for target in _targets(node if isinstance(node, dict) else OmegaConf.structured(node))
    )


def _targets(config: Any) -> Iterator[str]:
    """What a configuration would build, at any depth of it."""
    if isinstance(config, (DictConfig, ListConfig)):
        config = OmegaConf.to_container(config, resolve=False)
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("_target_", "_zen_target"):
                # of a class as a value counts which class it is
                yield str(config.get("path") if value == _CLASS else value)
            else:
                yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)
