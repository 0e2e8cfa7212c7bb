"""Every member of every group builds what its name says, with the defaults of its signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra_zen import instantiate
from omegaconf import ListConfig
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.modules import GRUModule, LSTMModule

from tests.configs._helpers import compose_recipe
from torchrl_shm import MemoryModule, SHMModule
from torchrl_shm.configs import MEMORIES, PPO
from torchrl_shm.configs.groups import groups
from torchrl_shm.modules import make_memory
from torchrl_shm.training import RolloutCollector, make_logger


def _member(entry: Any) -> tuple[str, str]:
    """Group and name as on the command line, where `env/popgym` is the first part of a name."""
    group, _, folder = str(entry["group"]).partition("/")
    return group, f"{folder}/{entry['name']}" if folder else entry["name"]


ALL = sorted(_member(entry) for entry in groups)
# what builds something; the rest are values that suit a task
MEMBERS = [(group, name) for group, name in ALL if group not in ("tuned", "sized", "size")]
TUNED = [name for group, name in ALL if group == "tuned"]
# levels differ in one word, and composing takes a while: of most tasks one level does
OTHER_LEVELS = ("medium", "Medium", "hard", "Hard")
SOME = [
    (group, name)
    for group, name in MEMBERS
    if not (name.startswith("popgym") and name.endswith(OTHER_LEVELS)) or "repeat_prev" in name
]
SOME_TUNED = [name for name in TUNED if ("env", name) in SOME]

# what the recipe passes itself: choosing it on the command line would have no effect, or a bad one
RUNTIME = {
    "env": {"num_envs", "split", "seed", "device"},
    "memory": {"input_size", "output_size", "cell", "in_key", "in_keys", "memory_key", "out_key",
               "out_keys", "theta_index_key", "is_init_key", "burn_in", "default_recurrent_mode",
               "device", "dtype"},
    "algo": set(),
    "collector": {"make_env", "policy", "num_envs", "rollout_length", "total_frames", "seed", "device"},
    "logger": {"run_dir"},
}  # fmt: skip

# what a member sets: everything else is the default of its signature
CHOICES: dict[tuple[str, str], dict[str, Any]] = {
    ("env", "wind"): {"shaping_radii": (0.001, 10.0), "mirror": True},
    ("env", "wind_hard"): {
        "num_train_tasks": 10, "num_test_tasks": 190, "shaping_radii": (0.001, 10.0),
        "mirror": True,
    },
    ("env", "wind_original"): {
        "num_tasks": 60, "num_train_tasks": 40, "num_test_tasks": 20, "max_wind": 0.08,
        "goal_radius": 0.03, "max_steps": 75, "shaping_radii": (0.001, 10.0),
        "mirror": True,
    },
    ("env", "point_robot"): {"shaping_radii": (0.001, 10.0)},
    ("env", "point_robot_hard"): {
        "num_train_tasks": 10, "num_test_tasks": 190, "shaping_radii": (0.001, 10.0),
    },
    ("env", "point_robot_original"): {
        "num_tasks": 100, "num_train_tasks": 80, "num_test_tasks": 20, "goal_radius": 0.2,
        "max_steps": 60, "shaping_radii": (0.001, 10.0),
    },
    ("env", "t_maze_passive"): {"length": 50},
    ("env", "t_maze_active"): {"length": 50, "passive": False},
    ("env", "key_to_door_original"): {"frames": (15, 60, 10), "final_reward": 5.0},
    ("env", "gym"): {"id": "CartPole-v1"},
    ("collector", "multi_sync"): {"backend": "multi_sync"},
    ("logger", "tensorboard"): {"kind": "tensorboard"},
    ("logger", "wandb"): {"kind": "wandb"},
    ("memory", "fast_weights_additive"): {"rule": "additive"},
    ("memory", "shm_fixed"): {"calibration": "fixed"},
    ("memory", "shm_neural"): {"calibration": "neural"},
    ("memory", "shm_none"): {"calibration": "none"},
    ("memory", "shm_constant"): {"calibration": "constant"},
    ("memory", "shm_noise"): {"calibration": "noise"},
    ("memory", "shm_popgym"): {"memory_size": 128},
    ("memory", "shm_pomdp"): {"clamp": 100.0},
}  # fmt: skip
for _steps in (100, 250, 500):
    _frames = {"frames": (15, _steps, 10)}
    CHOICES["env", f"visual_match_{_steps}"] = _frames
    CHOICES["env", f"visual_match_active_{_steps}"] = {**_frames, "passive": False}
    CHOICES["env", f"key_to_door_{_steps}"] = {"frames": (10, _steps, 3)}
GRIDS = sorted(name for _, name in CHOICES if name.startswith(("visual", "key")))
FAMILIES = (
    "autoencode", "battleship", "concentration", "count_recall", "higher_lower", "mine_sweeper",
    "multiarmed_bandit", "noisy_position_only_cart_pole", "noisy_position_only_pendulum",
    "position_only_cart_pole", "position_only_pendulum", "repeat_first", "repeat_previous",
    "velocity_only_cart_pole",
)  # fmt: skip
LEVELS = ("easy", "medium", "hard")
for _name, _level in product(FAMILIES, LEVELS):
    CHOICES["env", f"popgym_{_name}_{_level}"] = {"level": _level}
POPGYM = [f"popgym_{name}_{level}" for name, level in product(FAMILIES, LEVELS)]
# the names of the package
ORIGINALS = [
    "popgym/" + "".join(part.capitalize() for part in f"{name}_{level}".split("_"))
    for name, level in product(FAMILIES, LEVELS)
]


def build(group: str, name: str) -> Any:
    return instantiate(compose_recipe(f"{group}={name}")[group])


def of(group: str) -> list[str]:
    return [name for member_group, name in MEMBERS if member_group == group]


def test_members() -> None:
    assert {group: of(group) for group, _ in MEMBERS} == {
        "algo": ["ppo"],
        "collector": ["multi_sync", "single"],
        "env": sorted(
            [
                "gym", *GRIDS, "memory_length", "point_robot", "point_robot_hard",
                "point_robot_original", *POPGYM, *ORIGINALS, "t_maze_active", "t_maze_passive",
                "wind", "wind_hard", "wind_original",
            ]
        ),
        "logger": ["csv", "tensorboard", "wandb"],
        "memory": sorted(MEMORIES),
    }  # fmt: skip


@pytest.mark.parametrize(("group", "name"), SOME)
def test_options_are_those_of_the_signature(group: str, name: str) -> None:
    built = build(group, name)
    if isinstance(built, PPO):
        target, options = PPO, vars(built)
    else:
        target, options = built.func, dict(built.keywords)
        if target is make_memory:
            # the options of a cell are those of its constructor
            target = options.pop("cell")
            assert options.pop("state") == "lean"
    # a metaclass may hide the signature of a class
    target: Any = target.__init__ if inspect.isclass(target) else target
    parameters = dict(inspect.signature(target).parameters)
    parameters.pop("self", None)
    options = {
        # lists in files are tuples in signatures
        key: tuple(value) if isinstance(value, (list, ListConfig)) else value
        for key, value in options.items()
    }
    defaults = {key: parameters[key].default for key in options}
    assert options == defaults | CHOICES.get((group, name), {})
    # all that is left out is passed by the recipe
    missing = parameters.keys() - options.keys() - RUNTIME[group]
    # the name of an original stands first, without a name
    assert missing <= {"num_workers", *(["name"] if getattr(built, "args", ()) else [])}
    assert not options.keys() & RUNTIME[group]


@pytest.mark.parametrize("name", [name for group, name in SOME if group == "env"])
def test_environments(name: str) -> None:
    make: Callable[..., EnvBase] = build("env", name)
    env: Any = make(num_envs=3, seed=0, device="cpu")
    assert env.batch_size == (3,)
    shaped = "shaping" in env.rollout(2)["next"].keys()
    choices = CHOICES.get(("env", name), {})
    assert shaped == ("shaping_radii" in choices)
    for key, value in choices.items():
        if key != "id":
            assert getattr(env, key) == value


@pytest.mark.parametrize("name", [name for name in of("env") if name.startswith(("wind", "point"))])
def test_lists_of_tasks(name: str) -> None:
    env = build("env", name)(split="test", device="cpu")
    assert len(env.train_tasks) == env.num_train_tasks
    assert len(env.test_tasks) == env.num_test_tasks == env.num_envs
    # tests are the task as it is
    assert "shaping" not in env.rollout(2)["next"].keys()
    assert not getattr(env, "mirror", False)


@pytest.mark.parametrize("name", SOME_TUNED)
def test_what_suits_a_task_comes_with_it(name: str) -> None:
    assert name in of("env")
    (values,) = (entry["node"] for entry in groups if _member(entry) == ("tuned", name))
    algo = instantiate(compose_recipe(f"env={name}").algo)
    assert {key: getattr(algo, key) for key in values} == dict(values)
    plain = instantiate(compose_recipe().algo)
    untouched = vars(algo).keys() - values.keys()
    assert {key: getattr(algo, key) for key in untouched} == {
        key: getattr(plain, key) for key in untouched
    }
    # the command line has the last word
    assert compose_recipe(f"env={name}", "algo.gamma=0.5").algo.gamma == 0.5


@pytest.mark.parametrize("name", of("memory"))
def test_memories(name: str) -> None:
    make: Callable[..., TensorDictModuleBase] = build("memory", name)
    module = make(input_size=5, output_size=3, in_key="x", out_key="y", device="cpu")
    data = TensorDict({"x": torch.randn(4, 5)}, [4])
    data["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    if name in ("gru", "lstm"):
        for key, spec in module.make_tensordict_primer().primers.items():
            data[key] = spec.expand(4, *spec.shape).zero()
    assert module(data)["y"].shape == (4, 3)
    types = {"gru": GRUModule, "lstm": LSTMModule, "mlp": TensorDictModuleBase}
    kind = SHMModule if name.startswith("shm") else types.get(name, MemoryModule)
    assert isinstance(module, kind)


def test_memory_options_arrive() -> None:
    config = compose_recipe("memory=shm", "memory.memory_size=7", "memory.calibration=fixed")
    module = instantiate(config.memory)(input_size=5, output_size=3, in_key="x", out_key="y")
    assert (module.cell.memory_size, module.cell.calibration) == (7, "fixed")
    config = compose_recipe("memory=gru", "memory.num_layers=2")
    module = instantiate(config.memory)(input_size=5, output_size=3, in_key="x", out_key="y")
    assert module.gru.num_layers == 2


def test_collectors_and_loggers() -> None:
    for name in of("collector"):
        assert build("collector", name).func is RolloutCollector
    for name in of("logger"):
        assert build("logger", name).func is make_logger
    assert build("logger", "csv")(run_dir="run") is None


def test_presets_keep_their_own_options() -> None:
    config = compose_recipe("env=wind_original", "env.max_steps=10", "env.shaping_radii=null")
    env = instantiate(config.env)(split="train")
    assert (env.max_steps, env.goal_radius, env.shaping_radii) == (10, 0.03, None)


class TestMistakes:
    @pytest.mark.parametrize("group", sorted({group for group, _ in MEMBERS}))
    def test_unknown_member_lists_the_others(self, group: str) -> None:
        with pytest.raises(MissingConfigException) as error:
            compose_recipe(f"{group}=foo")
        found = str(error.value).split(f"Available options in '{group}':")[1].split()
        # those of the package are listed under their own folder
        assert {name for name in of(group) if "/" not in name} <= set(found)

    @pytest.mark.parametrize(
        "override",
        [
            "memory.memory_size=large",
            "memory.shortcut=3.5",
            "env.max_steps=1.5",
            "algo.learning_rate=fast",
            "algo.epochs=null",
        ],
    )
    def test_wrong_type(self, override: str) -> None:
        key = override.partition("=")[0]
        with pytest.raises(ConfigCompositionException, match=re.escape(override)) as error:
            compose_recipe(override)
        assert key in str(error.value.__cause__)

    @pytest.mark.parametrize("override", ["memory.sise=3", "algo.lr=1", "env.seed=1", "sed=1"])
    def test_unknown_key(self, override: str) -> None:
        with pytest.raises(ConfigCompositionException, match=override.partition("=")[0]):
            compose_recipe(override)
