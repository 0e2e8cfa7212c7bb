"""The configuration of a run on disk: read to rebuild its objects or to resume it."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from torchrl_shm.modules import make_memory
from torchrl_shm.training import ranks
from torchrl_shm.training.run_folder import is_running

# where Hydra puts runs and sweeps
_ROOTS = ("outputs", "multirun")
# overrides by which a command says where its runs are
_PLACES = ("hydra.run.dir=", "hydra.sweep.dir=")


def load_config(run_dir: str | Path) -> DictConfig:
    """Read the `config.yaml` of a run.

    Evaluating or resuming a run builds whatever this file names, so use only runs that you trust.
    To share a policy with strangers, export it.

    Args:
        run_dir: folder of the run.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: the folder has no `config.yaml`.
        ValueError: the file is not the configuration of a run, or was written by an older version.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; this must be the folder of a run")
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or "env" not in config:
        raise ValueError(f"{path} is not the configuration of a run")
    # GRU and LSTM were modules of TorchRL, whose parameters have other names
    if "experiment" not in config or ".baselines.make_rnn" in OmegaConf.to_yaml(config):
        raise ValueError(f"{path} was written by an older version, whose names differ; train again")
    if not isinstance(config.experiment, DictConfig):
        raise ValueError(f"{path} is not the configuration of a run")
    return config


def instantiate_saved(run_dir: str | Path) -> dict[str, Any]:
    """Build the parts of a run from its `config.yaml`.

    Args:
        run_dir: folder of the run.

    Returns:
        `env`, `memory` and `network`, which are factories, and `experiment`.

    Raises:
        FileNotFoundError: the folder has no `config.yaml`.
        ValueError: the file is not the configuration of a run, was written by an older version, or
            names an option of environment, memory or network that does not exist.
    """
    config = load_config(run_dir)
    parts = {name: instantiate(config[name]) for name in ("env", "memory", "network", "experiment")}
    for name in ("env", "memory", "network"):
        _refuse_unknown(name, parts[name], Path(run_dir) / "config.yaml")
    return parts


def shared_command(command: str) -> str:
    """Leave out of the command of a run where it was written to, which means nothing elsewhere.

    Args:
        command: that of a `config.yaml`.

    Returns:
        The command that makes the run again.

    Examples:
        >>> from torchrl_shm.configs.saved import shared_command
        >>> shared_command("python recipes/ppo_shm.py env=wind experiment.run_dir=/home/me/run")
        'python recipes/ppo_shm.py env=wind'
    """
    places = (*_PLACES, "experiment.run_dir=", "experiment.resume=")
    return shlex.join(part for part in shlex.split(command) if not part.startswith(places))


def resumed_config(config: DictConfig) -> DictConfig:
    """Take the configuration of the run that `experiment.resume` names.

    Args:
        config: the composed configuration of a recipe. `experiment.resume` is null, the folder of a
            run, or `"auto"`: the newest run of the same configuration that is not finished.

    Returns:
        The configuration of that run, with its folder; or `config` itself, with `resume` null, if
        there is no run to resume.

    Raises:
        FileNotFoundError: `experiment.resume` is not the folder of a run.
        ValueError: other values are given together with the folder.
    """
    resume = config.experiment.resume
    if resume is None:
        return config
    if resume == "auto":
        # the same for all processes that learn together
        folder = ranks.from_first(ranks.on_first(lambda: _newest_unfinished(config)))
    else:
        folder = Path(resume)
        _refuse_other_values()
        if not (folder / "config.yaml").exists():
            raise FileNotFoundError(
                f"experiment.resume={resume} is not the folder of a run: it has no config.yaml"
            )
    if folder is None:
        print("no unfinished run of this configuration; a new one starts", file=sys.stderr)
        config.experiment.resume = None
        return config
    saved = load_config(folder)
    # the folder that Hydra has made for a new run is not needed
    fresh = Path(config.experiment.run_dir)
    if fresh.resolve() != folder.resolve():
        remove_empty(fresh)
    place = {"run_dir": str(folder.resolve()), "resume": str(folder)}
    return OmegaConf.merge(saved, {"experiment": place})  # pyright: ignore[reportReturnType]


def remove_empty(folder: Path) -> None:
    """Remove a folder that Hydra has made for a run that does not need it.

    Args:
        folder: the folder; its parents go, too, as long as they are empty, up to the folder of all
            runs. Whatever holds something stays, and so does a folder elsewhere.
    """
    # a folder that was named may have been there before
    if not set(_ROOTS) & set(folder.parts):
        return
    with suppress(OSError):
        for path in (folder, *folder.parents):
            path.rmdir()
            if path.name in _ROOTS:
                break


def _refuse_unknown(name: str, part: Any, path: Path) -> None:
    """Refuse options that a factory would refuse later, without a word about the file."""
    known = _parameters(part.func)
    if part.func is make_memory:
        # what it does not know is for the cell
        del known["options"]
        known |= _parameters(part.keywords["cell"])
    if any(x.kind is x.VAR_KEYWORD for x in known.values()):
        return
    for option in part.keywords:
        if option not in known:
            raise ValueError(
                f"{path}: {name}.{option} is unknown; this run was made by another version of the "
                "package, or the file was changed"
            )


def _refuse_other_values() -> None:
    if not HydraConfig.initialized():
        return
    overrides = HydraConfig.get().overrides.task
    others = [override for override in overrides if not override.startswith("experiment.resume=")]
    if others:
        raise ValueError(
            f"experiment.resume=<folder> keeps that run's configuration; leave out {others},"
            " or start a new run without it"
        )


def _newest_unfinished(config: DictConfig) -> Path | None:
    own = Path(config.experiment.run_dir)
    # the folder that the command leads to comes first, even if its run is finished
    if (own / "config.yaml").exists() and _same(own, config):
        return own
    # and is the only candidate if the command names it
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
    """Whether the folder's run has the configuration, wherever it writes."""
    # one that is of another version or cannot be read is not the same
    with suppress(ValueError, OSError):
        return _equal(comparable(load_config(folder)), comparable(config))
    return False


def comparable(config: DictConfig) -> dict[str, Any]:
    """All values that decide what a run computes, without its folder, its names and its command."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("command", None)
    for name in ("run_dir", "resume", "names"):
        plain["experiment"].pop(name, None)
    return plain


def _equal(saved: Any, config: Any) -> bool:
    """Whether both build the same; an option that is newer than the run has its default there."""
    if not (isinstance(saved, dict) and isinstance(config, dict)):
        return saved == config
    if newer := config.keys() - saved.keys():
        saved = saved | {name: x for name, x in _defaults(config).items() if name in newer}
    return saved.keys() == config.keys() and all(_equal(saved[x], config[x]) for x in config)


def _defaults(section: dict[str, Any]) -> dict[str, Any]:
    """What the class or function that a section names takes where the section says nothing."""
    cell = section.get("cell")
    # `make_memory` hands its options to the class of the memory
    paths = [section.get("_target_"), cell.get("path") if isinstance(cell, dict) else None]
    made = [get_object(path) for path in paths if isinstance(path, str)]
    parameters = [x for call in made for x in _parameters(call).values()]
    return {
        x.name: list(x.default) if isinstance(x.default, tuple) else x.default for x in parameters
    }


def _parameters(call: Any) -> dict[str, Parameter]:
    """What a class or function takes."""
    # the metaclass of environments hides what their constructors take
    return dict(signature(call.__init__ if isinstance(call, type) else call).parameters)
