"""From groups to the parts of a run."""

from __future__ import annotations

from typing import Any

import pytest
from hydra_zen import zen
from hydra_zen.third_party.pydantic import pydantic_parser

from tests.configs._helpers import compose_recipe
from torchrl_shm import SHM
from torchrl_shm.configs import add_memory


def test_names_of_memories_are_given_once() -> None:
    with pytest.raises(
        ValueError, match=r"memory=gru is taken; choose a name that is none of \['dnc'"
    ):
        add_memory("gru", SHM)


class TestLiterals:
    """Options are checked where a recipe takes its parts."""

    @pytest.mark.parametrize(
        ("override", "allowed"),
        [
            ("memory.backend=foo", "'auto', 'reference', 'chunked', 'numba' or 'triton'"),
            ("memory.state=foo", "'lean', 'stored' or 'zero'"),
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
                "make_env": None, "policy": None, "num_envs": 1, "rollout_length": 1, "total_frames": 1,
            },
            "logger": {"run_dir": "run"},
        }[group]  # fmt: skip

        def task(memory: Any, collector: Any, logger: Any) -> None:
            {"memory": memory, "collector": collector, "logger": logger}[group](**runtime)

        with pytest.raises(ValueError, match=f"Input should be {allowed}"):
            zen(task, instantiation_wrapper=pydantic_parser)(compose_recipe(override))
