"""From groups to a run folder's `config.yaml`, and back to objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra_zen import instantiate, zen
from hydra_zen.third_party.pydantic import pydantic_parser
from omegaconf import OmegaConf

from tests.configs._helpers import compose_recipe
from tests.configs.test_groups import MEMBERS
from torchrl_shm import SHM
from torchrl_shm.configs import PPO, add_memory, instantiate_saved, save_config

PARTS = ("env", "memory", "algo")


def as_plain(part: Any) -> Any:
    """Function and options of a factory; lists and tuples are the same in a file."""
    if isinstance(part, PPO):
        return {key: getattr(part, key) for key in vars(part)}
    return part.func, dict(part.keywords)


class TestSavedConfig:
    @pytest.mark.parametrize(("group", "name"), MEMBERS)
    def test_round_trip(self, tmp_path: Path, group: str, name: str) -> None:
        config = compose_recipe(f"{group}={name}", "seed=7", "algo.epochs=3")
        save_config(config, tmp_path)
        saved = instantiate_saved(tmp_path)
        assert set(saved) == {*PARTS, "seed", "names"}
        assert saved["seed"] == 7
        assert saved["names"] == {"env": "wind", "memory": "shm"}
        for part in PARTS:
            assert as_plain(saved[part]) == as_plain(instantiate(config[part]))
        assert saved["algo"].epochs == 3

    def test_every_value_is_resolved(self, tmp_path: Path) -> None:
        config = compose_recipe("algo.row_length=${env.max_steps}", "env.max_steps=60")
        save_config(config, tmp_path)
        text = (tmp_path / "config.yaml").read_text()
        assert "${" not in text
        assert instantiate_saved(tmp_path)["algo"].row_length == 60

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist; run=\.\.\."):
            instantiate_saved(tmp_path)


def test_names_of_memories_are_given_once() -> None:
    with pytest.raises(
        ValueError, match=r"memory=gru is taken; choose a name that is none of \['dnc'"
    ):
        add_memory("gru", SHM)


class TestForeignTargets:
    """A run folder from somebody else builds nothing but what is ours."""

    @pytest.fixture
    def crafted(self, tmp_path: Path) -> Any:
        def save(key: str, value: Any) -> None:
            config = OmegaConf.to_container(compose_recipe(), resolve=True)
            assert isinstance(config, dict)
            OmegaConf.update(loaded := OmegaConf.create(config), key, value, force_add=True)
            OmegaConf.save(loaded, tmp_path / "config.yaml")

        return save

    @pytest.fixture(autouse=True)
    def _traps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def trap(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("foreign code ran")

        monkeypatch.setattr(os, "system", trap)

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "subprocess.run",
            "torch.load",
            "hydra_zen.funcs.zen_processing",
            "torchrl.record.loggers.get_logger",
            # paths that only begin like ours
            "torchrl_shm",
            "torchrl_shm_evil.envs.run",
            "torchrl_shm.envs.no_such_module.run",
            "torchrl_shm.envs.wind.no_such_name",
            # what our modules import
            "torchrl_shm.envs.wind.torch.load",
            "torchrl_shm.envs.wind.math.exp",
            "torchrl_shm.training.run_folder.os.system",
            "torchrl_shm.training.loggers.find_spec",
            "torchrl_shm.configs.compose.import_module",
            # what of ours writes files
            "torchrl_shm.training.run_folder.write_atomically",
            "torchrl_shm.training.plots.plot_learning_curve",
            "torchrl_shm.configs.compose.save_config",
        ],
    )
    def test_target(self, tmp_path: Path, crafted: Any, target: str) -> None:
        crafted("env._target_", target)
        with pytest.raises(ValueError, match=f"'{target}'; only targets of torchrl_shm"):
            instantiate_saved(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("memory._target_", "os.system"),
            # a class as a value
            ("memory.memory_size", {"_target_": "hydra_zen.funcs.get_obj", "path": "os.system"}),
            ("logger._target_", "os.system"),
            ("env._zen_target", "os.system"),
            ("env.max_wind", {"_target_": "os.system", "_args_": ["false"]}),
            ("algo.hidden_sizes", [{"_target_": "os.system", "_partial_": True}]),
            ("algo.hidden_sizes", [[{"a": {"_target_": "os.system", "_args_": ["false"]}}]]),
            ("names", {"env": {"_target_": "os.system"}}),
            ("env._target_", {"_target_": "os.system", "command": "false"}),
            ("env._target_", "${oc.decode:os.system}"),
            ("env.max_wind", "${oc.create:{_target_:os.system}}"),
        ],
    )
    def test_place(self, tmp_path: Path, crafted: Any, key: str, value: Any) -> None:
        crafted(key, value)
        with pytest.raises(ValueError, match=r"os\.system.*only targets of torchrl_shm"):
            instantiate_saved(tmp_path)


class TestLiterals:
    """Options are checked where a recipe takes its parts."""

    @pytest.mark.parametrize(
        ("override", "allowed"),
        [
            ("memory.backend=foo", "'auto', 'reference', 'chunked', 'numba' or 'triton'"),
            ("memory.state=foo", "'row', 'stored' or 'zero'"),
            ("memory.calibration=foo", "'random', 'fixed', 'neural', 'none', 'constant'"),
            ("collector.backend=foo", "'single' or 'multi_sync'"),
            ("logger.kind=foo", "'csv', 'tensorboard' or 'wandb'"),
        ],
    )
    def test_unknown_option_lists_the_others(self, override: str, allowed: str) -> None:
        group = override.partition(".")[0]
        runtime: dict[str, Any] = {
            "memory": {"input_size": 5, "output_size": 3, "in_key": "x", "out_key": "y"},
            "collector": {
                "make_env": None, "policy": None, "num_envs": 1, "row_length": 1, "total_frames": 1,
            },
            "logger": {"run_dir": "run"},
        }[group]  # fmt: skip

        def task(memory: Any, collector: Any, logger: Any) -> None:
            {"memory": memory, "collector": collector, "logger": logger}[group](**runtime)

        with pytest.raises(ValueError, match=f"Input should be {allowed}"):
            zen(task, instantiation_wrapper=pydantic_parser)(compose_recipe(override))
