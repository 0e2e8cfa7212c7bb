"""From groups to a running recipe, and from a run folder back to objects."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hydra.conf import HelpConf, HydraConf, JobConf, RunDir, SweepDir
from hydra_zen import MISSING, ZenStore, make_config, zen
from hydra_zen.third_party.pydantic import pydantic_parser
from hydra_zen.wrapper import Zen
from omegaconf import DictConfig, OmegaConf

from torchrl_shm.configs.memories import memory_config
from torchrl_shm.configs.saved import allowed_targets, take_up
from torchrl_shm.modules import MemoryCell


def run_recipe(main: Callable[..., Any], *, name: str, algo: str) -> None:
    """Run a recipe from the command line.

    Args:
        main: the recipe; its parameters are `env`, `memory`, `algo`, `collector`, `logger` (one
            config group each), `seed`, `device`, `threads`, `names`, `run_dir`, `resume` and
            `zen_cfg`.
        name: name of the recipe, of its configuration and of its output folder.
        algo: default member of the group `algo`.
    """
    register(name, algo=algo)
    task = zen(main, instantiation_wrapper=pydantic_parser, ZenWrapper=_Recipe)
    task.hydra_main(config_name=name, config_path=None, version_base="1.3")


class _Recipe(Zen[..., Any]):
    """A recipe's `main` that takes up an old run where `resume` says so."""

    def __call__(self, cfg: Any, /) -> Any:
        try:
            config = take_up(cfg)
        except (ValueError, OSError) as error:
            # a mistake of the command line, which no traceback explains
            print(f"resume: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        return super().__call__(config)


class _OnRun(Zen[..., Any]):
    """A recipe's `main` that reads a run."""

    def __call__(self, cfg: Any, /) -> Any:
        try:
            return super().__call__(cfg)
        except FileNotFoundError as error:
            # a mistake of the command line, which no traceback explains
            print(error, file=sys.stderr)
            raise SystemExit(2) from None


def run_on_run(main: Callable[..., Any], *, name: str, help: str, **options: Any) -> None:
    """Run a recipe that reads the folder of a run, from the command line.

    Args:
        main: the recipe; its parameters are `run`, the folder, and the options.
        name: name of the recipe and of its file.
        help: what `--help` prints before the defaults: what the recipe does, and its options.
        **options: defaults by name.

    Raises:
        SystemExit: the command does not say which run, or a file of the run is missing.
    """

    def require_run(config: DictConfig) -> None:
        """Stop with one line."""
        if OmegaConf.is_missing(config, "run") or not config.run:
            message = f"{name}.py: pass the folder of a run, run=outputs/ppo_shm/<date>/<time>_..."
            print(message, file=sys.stderr)
            raise SystemExit(2)

    config = make_config(
        hydra_defaults=["_self_", {"override hydra/job_logging": "none"}], run=MISSING, **options
    )
    # all output goes to where the recipe says
    template = f"{help}\n\n== Configuration ==\n$CONFIG"
    hydra = HydraConf(
        job=JobConf(name=name),
        run=RunDir("."),
        output_subdir=None,
        help=HelpConf(app_name=name, template=template),
    )
    store = ZenStore(name=name, deferred_hydra_store=True, overwrite_ok=True)
    store(config, name=name)
    store(hydra, group="hydra", name="config")
    store.add_to_hydra_store(overwrite_ok=True)
    task = zen(main, pre_call=require_run, ZenWrapper=_OnRun)
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
        resume=None,
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
    allowed_targets.cache_clear()
