"""What CONTRIBUTING.md calls one edit is one call, or one line, of a program of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra_zen import instantiate, zen
from hydra_zen.third_party.pydantic import pydantic_parser
from torch import Tensor

from recipes import ppo_shm
from tests.configs._helpers import compose_recipe
from torchrl_shm import SHM, MemoryLengthEnv, WindEnv
from torchrl_shm.configs import ENVS, add_algo, add_env, add_memory
from torchrl_shm.configs.groups import MEMBERS, Member
from torchrl_shm.configs.presets import factory_config
from torchrl_shm.modules import BaseCell
from torchrl_shm.training import TrainingRun, make_test_env


class Fading(BaseCell):
    def __init__(self, input_size: int, output_size: int, keep: float = 0.9) -> None:
        super().__init__(input_size, output_size, (output_size,))
        self.keep = keep
        self.write = torch.nn.Linear(input_size, output_size)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.keep * memory + self.write(x)
        return memory, memory


@dataclass
class Watching:
    """An algorithm that learns nothing, with other values than PPO."""

    tau: float = 0.1
    batch_size: int = 5


class Notes:
    """What the logger of `make_notes` receives."""

    rows: list[tuple[str, float, int]]

    def log_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))


def make_notes(*, run_dir: str) -> Any:
    Notes.rows = []
    return Notes()


def watch(
    env: Any, memory: Any, network: Any, experiment: Any, algo: Watching, collector: Any,
    logger: Any = None, zen_cfg: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """A recipe of one's own, as short as they come."""
    with TrainingRun.open("watching", experiment, env, memory, logger, zen_cfg) as run:
        test_env = make_test_env(env, num_episodes=experiment.num_test_episodes)
        operator = network(test_env, memory)
        policy = operator.get_policy_operator()
        rollouts = collector(
            env, policy, num_envs=experiment.num_envs, rollout_length=algo.batch_size,
            total_frames=experiment.total_frames, seed=experiment.seed,
        )  # fmt: skip
        run.track(operator=operator, collector=rollouts)
        for _ in run.batches(rollouts):
            run.log({"tau": algo.tau})
        return run.finish(policy, test_env)


def run(main: Any, config: Any) -> dict[str, Any]:
    return zen(main, instantiation_wrapper=pydantic_parser)(config)


TINY = ("experiment.num_envs=2", "experiment.num_test_episodes=2", "network.embedding_size=4")


def test_a_memory_an_environment_and_a_logger(tmp_path: Path) -> None:
    tuned = {"experiment": {"total_frames": 16}, "algo": {"rollout_length": 4}}
    add_memory("fading", Fading, keep=0.5)
    add_env("short", MemoryLengthEnv, length=2, tuned={"ppo": tuned})
    MEMBERS["logger/notes"] = Member(partial(factory_config, make_notes, zen_exclude=["run_dir"]))
    config = compose_recipe(
        "env=short", "memory=fading", "logger=notes", "algo.sequences_per_minibatch=2", *TINY,
        "experiment.names={env: short, memory: fading}", f"experiment.run_dir={tmp_path}",
    )  # fmt: skip
    assert (config.memory.keep, config.env.length) == (0.5, 2)
    summary = run(ppo_shm.main, config)
    assert (summary["env"], summary["memory"], summary["frames"]) == ("short", "fading", 16)
    assert {step for _, _, step in Notes.rows} == {8, 16}


def test_an_algorithm(tmp_path: Path) -> None:
    add_algo("watching", Watching, tuned={"memory_length": {"algo": {"batch_size": 2}}})
    config = compose_recipe(
        "env=memory_length", "env.length=2", "experiment.total_frames=20", "algo.tau=0.2", *TINY,
        f"experiment.run_dir={tmp_path}", recipe="watching", algo="watching",
    )  # fmt: skip
    assert instantiate(config.algo) == Watching(tau=0.2, batch_size=2)
    summary = run(watch, config)
    assert summary["frames"] == 20
    assert "tau" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_an_algorithm_composes_with_every_environment() -> None:
    """What suits a task under PPO stays away from it."""
    add_algo("watching", Watching)
    own = compose_recipe(recipe="watching", algo="watching")
    for name in ("key_to_door_100", "popgym/RepeatFirstEasy"):
        config = compose_recipe(f"env={name}", recipe="watching", algo="watching")
        assert (config.algo, config.experiment) == (own.algo, own.experiment)
    # composing with each would take ten seconds: nothing but these two members depends on the task
    for name in ENVS:
        assert f"tuned/watching/{name}" not in MEMBERS
        assert MEMBERS[f"env/{name}"].package is None


def test_names_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"memory=gru is taken, as are all of \['dnc'"):
        add_memory("gru", SHM)
    with pytest.raises(ValueError, match="env=wind is taken"):
        add_env("wind", WindEnv)
    with pytest.raises(ValueError, match="algo=ppo is taken"):
        add_algo("ppo", Watching)
    with pytest.raises(TypeError, match="speed"):
        add_env("fast_wind", WindEnv, speed=3)
    assert "env/fast_wind" not in MEMBERS
