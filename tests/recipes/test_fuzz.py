"""Whatever is typed on the command line is a run or an error that says what to change.

FUZZ_EXAMPLES=5000 pytest tests/recipes/test_fuzz.py
"""

from __future__ import annotations

import os
import tempfile
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize
from hydra.errors import HydraException
from hydra_zen import zen
from hydra_zen.third_party.pydantic import pydantic_parser
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from tests.recipes._helpers import RECIPES, fitting
from torchrl_shm.configs import ENVS as ALL_ENVS
from torchrl_shm.configs import MEMORIES as ALL_MEMORIES
from torchrl_shm.configs import register
from torchrl_shm.configs.groups import MEMBERS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))

# what runs in no time, and is as small as a run can be; drawn values come on top
SMALL: dict[str, Any] = {
    "experiment.total_frames": 24, "experiment.num_envs": 4, "experiment.num_test_episodes": 2,
    "algo.rollout_length": 6, "algo.sequences_per_minibatch": 2, "algo.epochs": 1,
    "network.embedding_size": 5, "network.hidden_sizes": [4],
}  # fmt: skip
# not those that differ in the length of their episodes alone; other packages step theirs in Python
ENVS = sorted(
    name
    for name in ALL_ENVS
    if "/" not in name
    and not name.endswith(("gym", "_250", "_500", "_medium", "_hard", "_original"))
)
MEMORIES = sorted(ALL_MEMORIES)

NUMBERS = {
    int: st.sampled_from([0, 1, 2, 3, 5, 7, -1, 10**9]),
    float: st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, -1.0, 1e9, "nan", "inf", 1e-9]),
    bool: st.booleans(),
    str: st.sampled_from(["", "auto", "unheard_of"]),
}
# making what is that large only shows that the machine has an end
BIG = ("size", "num_", "length", "layers", "heads", "steps", "window", "frames", "k", "episodes")


def value_like(old: Any) -> st.SearchStrategy[Any]:
    """Values of the type of an old one, good and bad."""
    for kind in (bool, int, float, str):
        if isinstance(old, kind):
            return NUMBERS[kind]
    if old is None:
        return st.one_of(st.none(), NUMBERS[float], NUMBERS[int])
    return st.lists(st.one_of(NUMBERS[int], NUMBERS[float]), max_size=3)


# where a run is, and what the whole process would keep
PLACES = ("run_dir", "resume", "names", "threads")


@cache
def options_of(group: str, name: str) -> dict[str, Any]:
    """Options of a member and their defaults."""
    options: Any = OmegaConf.to_container(
        OmegaConf.structured(MEMBERS[f"{group}/{name}"].make()), resolve=False
    )
    return {
        key: value
        for key, value in sorted(options.items())
        if not key.startswith("_") and not isinstance(value, dict) and key not in PLACES
    }


@st.composite
def overrides(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A recipe, members of groups, and values of some of their options."""
    recipe = draw(st.sampled_from(sorted(RECIPES)))
    found: dict[str, Any] = {
        "env": draw(st.sampled_from(ENVS)),
        "memory": draw(st.sampled_from(MEMORIES)),
        "size": draw(st.sampled_from(["own", "params", "state"])),
    }
    algo = recipe.partition("_")[0]
    members = {**found, "algo": algo, "network": "actor_critic", "experiment": "default"}
    for group in draw(st.lists(st.sampled_from(sorted(members.keys() - {"size"})), max_size=4)):
        if options := options_of(group, members[group]):
            key = draw(st.sampled_from(list(options)))
            value = draw(value_like(options[key]))
            if value == 10**9 and any(part in key for part in BIG):
                value = 9
            found[f"{group}.{key}"] = value
    return recipe, found


def compose_run(recipe: str, chosen: dict[str, Any], run_dir: str) -> DictConfig:
    names = {"experiment.names": "{env: x, memory: y}", "experiment.run_dir": run_dir}
    values = {**SMALL, **names, **chosen}
    lines = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    with initialize(version_base="1.3", config_path=None):
        return compose(f"fuzz_{recipe}", list(fitting(recipe, lines)))


@pytest.fixture(scope="module", autouse=True)
def configurations() -> None:
    for recipe in RECIPES:
        register(f"fuzz_{recipe}", algo=recipe.partition("_")[0])


def outcome(recipe: str, chosen: dict[str, Any]) -> str | None:
    """The error of a run; `None` if it went to its end."""
    run = zen(RECIPES[recipe][0], instantiation_wrapper=pydantic_parser)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # a memory that is reported as large, or damaged files, are no subject here
        warnings.simplefilter("ignore", UserWarning)
        try:
            summary = run(compose_run(recipe, chosen, folder))
        # what is meant for people to read; anything else comes out of the depth of a library
        except (ValueError, TypeError, KeyError, FloatingPointError, HydraException) as error:
            return str(error)
        except ValidationError as error:
            return str(error)
    assert summary["frames"] > 0
    assert torch.isfinite(torch.tensor(summary["eval_return"]))
    return None


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    database=None,
)
@given(drawn=overrides())
def test_every_outcome_is_a_run_or_a_clear_error(drawn: tuple[str, dict[str, Any]]) -> None:
    recipe, chosen = drawn
    message = outcome(recipe, chosen)
    if message is None:
        return
    # it names an option that was given, or one that would help
    named = [key.split(".")[-1] for key in chosen if "." in key]
    assert any(name in message for name in [*named, "memory.clamp", "algo."]), (drawn, message)
