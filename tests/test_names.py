"""Old names say the new one, and private names of TorchRL are still there."""

from __future__ import annotations

from importlib import import_module

import pytest
from omegaconf import OmegaConf

from tests.configs._helpers import compose_recipe
from torchrl_shm import SHMModule
from torchrl_shm.renamed import NAMES, OPTIONS, refuse_old_options
from torchrl_shm.torchrl_private import OVERRIDDEN


@pytest.mark.parametrize("old", NAMES)
def test_old_names_of_python(old: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.raises(ImportError, match=f"{name} is now"):
        exec(f"from {module} import {name}")
    new_module, _, new = NAMES[old].partition("(")[0].rpartition(".")
    if new_module.startswith("torchrl_shm"):
        where = import_module(new_module.removesuffix(".TrainingRun"))
        assert hasattr(where, new if where.__name__ == new_module else "TrainingRun")


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(import_module("torchrl_shm.training"), "RowColector")


def test_old_options_of_the_command_line() -> None:
    with pytest.raises(SystemExit) as error:
        refuse_old_options(["env=wind", "algo.num_envs=8", "-m", "+seed=0,1", "algo.gamma=0.9"])
    assert str(error.value).splitlines() == [
        "algo.num_envs is now experiment.num_envs: write experiment.num_envs=8",
        "seed is now experiment.seed: write experiment.seed=0,1",
    ]


def test_new_options_pass_and_exist() -> None:
    refuse_old_options([f"{name}=1" for name in OPTIONS.values()])
    config = OmegaConf.to_container(compose_recipe("memory=linear_attention"))
    for name in OPTIONS.values():
        group, _, option = name.partition(".")
        assert option in config[group]


def test_old_state() -> None:
    with pytest.raises(ValueError, match="state='row' is now state='lean'"):
        SHMModule(5, 3, in_key="x", out_key="y", state="row")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_private_methods_exist(name: str) -> None:
    module, _, cls = name.rpartition(".")
    for method in OVERRIDDEN[name]:
        assert hasattr(getattr(import_module(module), cls), method)
