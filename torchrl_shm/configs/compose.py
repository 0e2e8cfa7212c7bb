"""From groups to a running recipe, and members of your own."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from hydra.conf import HelpConf, HydraConf, JobConf, RunDir, SweepDir
from hydra.core.config_store import ConfigStore
from hydra_zen import MISSING, builds, make_config
from hydra_zen.third_party.pydantic import pydantic_parser
from torchrl.envs import EnvBase

from torchrl_shm.configs._help import help_template
from torchrl_shm.configs.envs import env_config
from torchrl_shm.configs.groups import MEMBERS, MEMORY_GROUPS, Member, leave_out_other_recipes
from torchrl_shm.configs.memories import memory_config
from torchrl_shm.configs.mistakes import mistakes_in_a_line
from torchrl_shm.configs.task import RecipeTask, end_reading
from torchrl_shm.modules import MemoryCell
from torchrl_shm.renamed import refuse_old_options
from torchrl_shm.training import ranks

_GROUPS = ("env", "memory", "network", "experiment", "algo", "collector", "logger")


def run_recipe(
    main: Callable[..., Any], *, name: str, algo: str, network: str = "actor_critic"
) -> None:
    """Run a recipe from the command line.

    Args:
        main: the recipe; its parameters are `env`, `memory`, `network`, `experiment`, `algo`,
            `collector` and `logger`, one config group each, and `zen_cfg`, the configuration.
        name: name of the recipe, of its configuration and of its output folder.
        algo: default member of the group `algo`, and the folder of `tuned` that belongs to it.
        network: default member of the group `network`.

    Raises:
        SystemExit: the command line is wrong; code 2, and a few words on stderr.
    """
    refuse_old_options(sys.argv[1:])
    # a million objects of imported packages stay to the end; collections need not visit them
    gc.freeze()
    # TorchRL tells of every transform that moves from one stack to another
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    leave_out_other_recipes(algo, network)
    register(name, algo=algo, network=network)
    task = RecipeTask(main, instantiation_wrapper=pydantic_parser)
    # in the process of a job, which gets its configuration from the launcher
    end_reading(task)
    if "hydra/launcher=joblib" in sys.argv:
        # joblib answers it by killing its processes, whose runs have got it as well and save
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with mistakes_in_a_line(), _without_a_folder_of_its_own():
        task.hydra_main(config_name=name, config_path=None, version_base="1.3")
    ranks.leave()


@contextmanager
def _without_a_folder_of_its_own() -> Generator[None]:
    """Keep Hydra from making a folder for every process that `torchrun` starts but the first."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    before = list(sys.argv)
    with TemporaryDirectory() as folder:
        sys.argv.append(f"hydra.run.dir='{folder}'")
        try:
            yield
        finally:
            sys.argv[:] = before


def register(name: str, *, algo: str, network: str = "actor_critic") -> None:
    """Put the groups and a recipe's configuration into Hydra's store.

    Args:
        name: name of the recipe and of its configuration.
        algo: default member of the group `algo`.
        network: default member of the group `network`.

    Examples:
        >>> from hydra import compose, initialize
        >>> from torchrl_shm.configs import register
        >>> register("my_recipe", algo="ppo")
        >>> with initialize(version_base="1.3", config_path=None):
        ...     config = compose("my_recipe", ["memory=gru", "algo.epochs=2"])
        >>> config.algo.epochs
        2
    """
    recipe = make_config(
        hydra_defaults=[
            "_self_",
            {"env": "wind"},
            {"memory": "shm"},
            {"size": "own"},
            # options that make the memory that large, where there are some
            {"optional sized": "${size}_${memory}"},
            # a start that suits the length of the sequences, where the memory has one
            {"optional spanned": "${memory}"},
            # options of the memory that suit the task, with any algorithm and with this one, where
            # there are some
            {"optional suited": "${memory}/${env}"},
            {f"optional suited/{algo}": "${memory}/${env}"},
            {"network": network},
            # a memory of another kind for the actor
            *([{"network/actor_memory": None}] if network == "soft_actor_critic" else []),
            {"experiment": "default"},
            {"algo": algo},
            # values that suit the task, where there are some
            {f"optional tuned/{algo}": "${env}"},
            {"collector": "single"},
            {"logger": "csv"},
            # a run writes its own files, so Hydra writes no log
            {"override hydra/job_logging": "none"},
        ],
        **dict.fromkeys(_GROUPS, MISSING),
        zen_dataclass={"cls_name": name},
    )
    folder = f"{name}/${{now:%Y-%m-%d}}/${{now:%H-%M-%S}}"
    # distinct for runs that start in the same second; no "=", which the command line would parse
    run = "${hydra:runtime.choices.memory}_seed${experiment.seed}"
    hydra = HydraConf(
        job=JobConf(name=name, chdir=False),
        run=RunDir(f"outputs/{folder}_{run}"),
        sweep=SweepDir(dir=f"multirun/{folder}", subdir=f"${{hydra.job.num}}_{run}"),
        # the run folder has its own config.yaml
        output_subdir=None,
        # members of these follow from the choices in other groups
        help=HelpConf(
            app_name=name,
            template=help_template(MEMBERS, hidden=["tuned", "sized", "spanned", "suited"]),
        ),
    )
    store = ConfigStore.instance()
    store.store(name, recipe)
    store.store("config", hydra, group="hydra")


def add_memory(name: str, cell: Callable[..., MemoryCell], **options: Any) -> None:
    """Give a memory of your own a name for the command line, `memory=<name>`.

    Call it before `run_recipe` or `register`, and before a run with it is loaded again.

    Args:
        name: name in the group `memory`.
        cell: class of the cell, at the top level of a module, so that a saved run finds it again;
            its keyword arguments become options.
        **options: values that differ from the defaults of the cell.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from torchrl_shm.configs import add_memory
        >>> from torchrl_shm.modules import LRU
        >>> add_memory("lru_small", LRU, memory_size=8)
    """
    for group in MEMORY_GROUPS:
        _add(group, name, partial(memory_config, cell, **options))


def add_env(
    name: str,
    make_env: Callable[..., EnvBase],
    *,
    tuned: Mapping[str, dict[str, dict[str, Any]]] | None = None,
    **options: Any,
) -> None:
    """Give an environment of your own a name for the command line, `env=<name>`.

    Call it before `run_recipe` or `register`.

    Args:
        name: name in the group `env`.
        make_env: class or function at the top level of a module, so that a saved run finds it
            again. It takes `num_envs`, `seed` and `device`, and `split` where the task has a list
            of tests; its other keyword arguments become options.
        tuned: values of experiment and algorithm that suit the task, by algorithm:
            `{"ppo": {"algo": {"gamma": 0.99}, "experiment": {"total_frames": 1_000_000}}}`.
        **options: values that differ from the defaults of `make_env`.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from torchrl_shm import TMazeEnv
        >>> from torchrl_shm.configs import add_env
        >>> add_env("short_maze", TMazeEnv, length=5, tuned={"ppo": {"algo": {"gamma": 0.99}}})
    """
    _add("env", name, partial(env_config, make_env, **options))
    for algo, values in (tuned or {}).items():
        MEMBERS[f"tuned/{algo}/{name}"] = Member(partial(dict, values), "_global_")


def add_algo(
    name: str, options: type, *, tuned: Mapping[str, dict[str, dict[str, Any]]] | None = None
) -> None:
    """Give the values of an algorithm of your own a name for `run_recipe(..., algo=<name>)`.

    Call it before `run_recipe` or `register`, and before a run with it is loaded again.

    Args:
        name: name in the group `algo`.
        options: dataclass of the values, at the top level of a module, so that a saved run finds
            it again.
        tuned: values that suit a task, by task:
            `{"wind": {"algo": {"gamma": 0.9}, "experiment": {"total_frames": 1_000_000}}}`.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from dataclasses import dataclass
        >>> from torchrl_shm.configs import add_algo
        >>> @dataclass
        ... class A2C:
        ...     gamma: float = 0.99
        >>> add_algo("a2c", A2C, tuned={"wind": {"algo": {"gamma": 0.9}}})
    """
    _add("algo", name, partial(builds, options, populate_full_signature=True))
    for env, values in (tuned or {}).items():
        MEMBERS[f"tuned/{name}/{env}"] = Member(partial(dict, values), "_global_")


def _add(group: str, name: str, make: Callable[[], Any]) -> None:
    if f"{group}/{name}" in MEMBERS:
        taken = sorted(x.removeprefix(f"{group}/") for x in MEMBERS if x.startswith(f"{group}/"))
        raise ValueError(f"{group}={name} is taken, as are all of {taken}; choose another name")
    # an option that does not exist is refused here, not when the member is chosen
    make()
    MEMBERS[f"{group}/{name}"] = Member(make)
