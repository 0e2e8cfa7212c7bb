"""Old names of options end a command with the new ones."""

import pytest
from omegaconf import OmegaConf

from tests.configs._helpers import compose_recipe
from torchrl_shm.renamed import OPTIONS, refuse_old_options


def test_a_line_for_each() -> None:
    with pytest.raises(SystemExit) as error:
        refuse_old_options(["env=wind", "algo.num_envs=8", "-m", "+seed=0,1", "algo.gamma=0.9"])
    assert str(error.value).splitlines() == [
        "algo.num_envs is now experiment.num_envs: write experiment.num_envs=8",
        "seed is now experiment.seed: write experiment.seed=0,1",
    ]


def test_new_names_pass_and_exist() -> None:
    refuse_old_options([f"{name}=1" for name in OPTIONS.values()])
    config = OmegaConf.to_container(compose_recipe())
    for name in OPTIONS.values():
        group, _, option = name.partition(".")
        assert option in config[group]
