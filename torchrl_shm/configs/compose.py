"""From groups to a running recipe, and from a run folder back to objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.conf import HelpConf, HydraConf, JobConf, RunDir, SweepDir
from hydra_zen import MISSING, ZenStore, instantiate, make_config, zen
from hydra_zen.third_party.pydantic import pydantic_parser
from omegaconf import DictConfig, ListConfig, OmegaConf

from torchrl_shm.configs.memories import memory_config
from torchrl_shm.modules import MemoryCell

# a saved configuration may only build what is defined in these modules
_ALLOWED_MODULES = (
    "torchrl_shm.envs.", "torchrl_shm.modules.", "torchrl_shm.configs.algo.",
    "torchrl_shm.training.collection.", "torchrl_shm.training.loggers.",
)  # fmt: skip
# classes that `add_memory` was given in this process: whoever runs it trusts them
_ADDED: set[str] = set()
# how hydra-zen writes a class as a value
_CLASS = "hydra_zen.funcs.get_obj"


def run_recipe(main: Callable[..., Any], *, name: str, algo: str) -> None:
    """Run a recipe from the command line.

    Args:
        main: the recipe; its parameters are `env`, `memory`, `algo`, `collector`, `logger` (one
            config group each), `seed`, `device`, `threads`, `names`, `run_dir` and `zen_cfg`.
        name: name of the recipe, of its configuration and of its output folder.
        algo: default member of the group `algo`.
    """
    register(name, algo=algo)
    task = zen(main, instantiation_wrapper=pydantic_parser)
    task.hydra_main(config_name=name, config_path=None, version_base="1.3")


def register(name: str, *, algo: str) -> None:
    """Put the groups and a recipe's configuration into Hydra's store.

    Args:
        name: name of the recipe and of its configuration.
        algo: default member of the group `algo`.

    Examples:
        >>> from hydra import compose, initialize
        >>> from torchrl_shm.configs import register
        >>> register("my_recipe", algo="ppo")
        >>> with initialize(version_base="1.3", config_path=None):
        ...     config = compose("my_recipe", ["memory=gru", "algo.epochs=2"])
        >>> config.algo.epochs
        2
    """
    # imported here, not above: evaluating a run needs no groups
    from torchrl_shm.configs._help import help_template
    from torchrl_shm.configs.groups import groups

    recipe = make_config(
        hydra_defaults=[
            "_self_",
            {"env": "wind"},
            {"memory": "shm"},
            {"size": "own"},
            # what makes the memory that large, where something is known
            {"optional sized": "${size}_${memory}"},
            {"algo": algo},
            # what suits the task, where something is known
            {"optional tuned": "${env}"},
            {"collector": "single"},
            {"logger": "csv"},
            # all that a run says is in its own files
            {"override hydra/job_logging": "none"},
        ],
        env=MISSING,
        memory=MISSING,
        algo=MISSING,
        collector=MISSING,
        logger=MISSING,
        seed=0,
        device="cpu",
        # more threads than one slow small networks down
        threads=1,
        names={"env": "${hydra:runtime.choices.env}", "memory": "${hydra:runtime.choices.memory}"},
        run_dir="${hydra:runtime.output_dir}",
        zen_dataclass={"cls_name": name},
    )
    folder = f"{name}/${{now:%Y-%m-%d}}/${{now:%H-%M-%S}}"
    # runs that start in the same second keep apart; no "=", which the command line would parse
    run = "${hydra:runtime.choices.memory}_seed${seed}"
    hydra = HydraConf(
        job=JobConf(name=name, chdir=False),
        run=RunDir(f"outputs/{folder}_{run}"),
        sweep=SweepDir(dir=f"multirun/{folder}", subdir=f"${{hydra.job.num}}_{run}"),
        # the run folder has its own config.yaml
        output_subdir=None,
        # other groups choose the members of these
        help=HelpConf(app_name=name, template=help_template(groups, hidden=["tuned", "sized"])),
    )
    local = ZenStore(name=name, deferred_hydra_store=True, overwrite_ok=True)
    local(recipe, name=name)
    local(hydra, group="hydra", name="config")
    for store in (groups, local):
        store.add_to_hydra_store(overwrite_ok=True)


def add_memory(name: str, cell: Callable[..., MemoryCell], **options: Any) -> None:
    """Give a memory of your own a name for the command line, `memory=<name>`.

    Call it before `run_recipe` or `register`, and before a run with it is loaded again.

    Args:
        name: name in the group `memory`.
        cell: class of the cell, at the top of a module, so that it can be found again by its path;
            its keyword arguments become options.
        **options: values that differ from the defaults of the cell.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from torchrl_shm.configs import add_memory
        >>> from torchrl_shm.modules import LRU
        >>> add_memory("lru_small", LRU, memory_size=8)
    """
    from torchrl_shm.configs.groups import groups

    taken = {str(entry["name"]) for entry in groups if entry["group"] == "memory"}
    if name in taken:
        raise ValueError(f"memory={name} is taken; choose a name that is none of {sorted(taken)}")
    groups(memory_config(cell, **options), group="memory", name=name)
    _ADDED.add(f"{cell.__module__}.{cell.__qualname__}")


def save_config(config: DictConfig, run_dir: str | Path) -> None:
    """Write `config.yaml`, every value resolved.

    Args:
        config: the composed configuration.
        run_dir: folder of the run.
    """
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    OmegaConf.save(resolved, Path(run_dir) / "config.yaml")


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
    path = Path(run_dir) / "config.yaml"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run=... must be the folder of a run")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    for target in _targets(config):
        if not _is_ours(target):
            raise ValueError(
                f"{path} would build {target!r}; only targets of torchrl_shm are accepted, and "
                "memories that add_memory was given before"
            )
    parts = {name: instantiate(config[name]) for name in ("env", "memory", "algo")}
    return {**parts, "seed": config.seed, "names": OmegaConf.to_container(config.names)}


def _is_ours(target: str) -> bool:
    if target in _ADDED:
        return True
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(_ALLOWED_MODULES):
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    # a path can lead out of the package again, by what a module of ours imports
    return getattr(found, "__module__", None) == module


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key, value in node.items():
            if key in ("_target_", "_zen_target"):
                # of a class as a value counts which class it is
                yield str(node.get("path") if value == _CLASS else value)
            else:
                yield from _targets(value)
    elif isinstance(node, ListConfig):
        for value in node:
            yield from _targets(value)
