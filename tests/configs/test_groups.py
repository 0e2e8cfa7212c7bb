"""Members build what their names say, and differ from the signatures only where they should."""

from __future__ import annotations

import inspect
import re
from itertools import product
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra_zen import instantiate
from hydra_zen.third_party.pydantic import pydantic_parser
from omegaconf import OmegaConf
from tensordict import TensorDict

from tests.configs._helpers import compose_recipe
from torchrl_shm import MemoryModule
from torchrl_shm.configs import ENVS, GRPO, MEMORIES, PPO, SAC, SUITES, TUNED, Reinforce
from torchrl_shm.configs.groups import MEMBERS
from torchrl_shm.configs.tuned import SHM_VALUES
from torchrl_shm.envs import ask_env
from torchrl_shm.modules import SHM, make_memory
from torchrl_shm.networks import make_actor_critic, make_soft_actor_critic
from torchrl_shm.training import Experiment, make_logger

# arguments that a recipe passes itself: choosing them would have no effect, or a bad one
RUNTIME = {
    "env": {"num_envs", "split", "seed", "device"},
    "memory": {"input_size", "output_size", "cell", "in_key", "in_keys", "memory_key", "out_key",
               "out_keys", "choice_key", "is_init_key", "burn_in", "default_recurrent_mode",
               "device", "dtype"},
    "network": {"env", "memory", "device"},
    "collector": {"make_env", "policy", "num_envs", "rollout_length", "total_frames", "seed",
                  "device", "group_size", "reset_each_batch"},
    "logger": {"run_dir"},
}  # fmt: skip
POINT: dict[str, Any] = {"shaping_radii": (0.001, 0.3), "mirror": True}
WIND = {"shaping_radii": (0.001, 10.0), "mirror": True}
HARD = {"num_train_tasks": 10, "num_test_tasks": 190}
LEVELS = ("easy", "medium", "hard")
FAMILIES = (
    "autoencode", "battleship", "concentration", "count_recall", "higher_lower", "mine_sweeper",
    "multiarmed_bandit", "noisy_position_only_cart_pole", "noisy_position_only_pendulum",
    "position_only_cart_pole", "position_only_pendulum", "repeat_first", "repeat_previous",
    "velocity_only_cart_pole",
)  # fmt: skip
# values that differ from the defaults of a signature, for all members but memories of that name
CHOICES: dict[str, dict[str, Any]] = {
    "env/wind": WIND,
    "env/wind_hard": HARD | WIND,
    "env/wind_original": WIND | {
        "num_tasks": 60, "num_train_tasks": 40, "num_test_tasks": 20, "max_wind": 0.08,
        "goal_radius": 0.03, "max_steps": 75,
    },
    "env/point_robot": POINT,
    "env/point_robot_hard": HARD | POINT,
    "env/point_robot_original": {
        "num_tasks": 100, "num_train_tasks": 80, "num_test_tasks": 20, "goal_radius": 0.2,
        "max_steps": 60, "shaping_radii": (0.001, 10.0),
    },
    "env/t_maze_passive": {"length": 50},
    "env/t_maze_active": {"length": 50, "passive": False},
    "env/memory_length": {},
    "env/key_to_door_original": {"frames": (15, 60, 10), "final_reward": 5.0},
    "env/gym": {"id": "CartPole-v1"},
    "network/actor_critic": {},
    "network/soft_actor_critic": {},
    "collector/single": {},
    **{f"collector/{x}": {"backend": x} for x in ("multi_sync", "multi_async", "ray", "ray_async")},
    "logger/csv": {},
    "logger/tensorboard": {"kind": "tensorboard"},
    "logger/wandb": {"kind": "wandb"},
    "memory/fast_weights_additive": {"rule": "additive"},
    "memory/shm_popgym": {"memory_size": 128},
    "memory/shm_pomdp": {"clamp": 100.0},
    **{
        f"memory/shm_{kind}": {"calibration": kind}
        for kind in ("fixed", "neural", "none", "constant", "noise")
    },
}  # fmt: skip
for _n in (100, 250, 500):
    CHOICES[f"env/visual_match_{_n}"] = {"frames": (15, _n, 10)}
    CHOICES[f"env/visual_match_active_{_n}"] = {"frames": (15, _n, 10), "passive": False}
    CHOICES[f"env/key_to_door_{_n}"] = {"frames": (10, _n, 3)}
for _family, _level in product(FAMILIES, LEVELS):
    CHOICES[f"env/popgym_{_family}_{_level}"] = {"level": _level}
    # the names of the package
    _original = "".join(part.capitalize() for part in f"{_family}_{_level}".split("_"))
    CHOICES[f"env/popgym/{_original}"] = {}
# the same as those of `memory`
ACTOR_MEMORY = "network/actor_memory/"
FACTORIES = sorted(
    path
    for path in MEMBERS
    if path.partition("/")[0] in RUNTIME and not path.startswith(ACTOR_MEMORY)
)
# levels differ in one word
ENVIRONMENTS = [
    name for name in ENVS
    if not name.startswith("popgym") or name.endswith("_easy") or name == "popgym/RepeatFirstEasy"
]  # fmt: skip


def build(path: str) -> Any:
    return instantiate(MEMBERS[path].make())


def as_tuple(value: Any) -> Any:
    # lists in files are tuples in signatures
    return tuple(value) if OmegaConf.is_list(value) or isinstance(value, list) else value


def test_members() -> None:
    assert set(FACTORIES) == CHOICES.keys() | {f"memory/{name}" for name in MEMORIES}
    own = {path.removeprefix(ACTOR_MEMORY) for path in MEMBERS if path.startswith(ACTOR_MEMORY)}
    assert own == set(MEMORIES)
    others = {"algo", "experiment", "size", "sized", "spanned", "suited", "tuned"}
    assert {path.partition("/")[0] for path in MEMBERS} == RUNTIME.keys() | others


def test_options_are_those_of_the_signature() -> None:
    for path in FACTORIES:
        built = build(path)
        target, options = built.func, dict(built.keywords)
        if target is make_memory:
            # the options of a cell are those of its constructor
            target = options.pop("cell")
            del options["state"]
        # a metaclass may hide the signature of a class
        target = target.__init__ if inspect.isclass(target) else target
        parameters = inspect.signature(target).parameters
        defaults = {key: parameters[key].default for key in options}
        found = {key: as_tuple(value) for key, value in options.items()}
        assert found == defaults | CHOICES.get(path, {}), path
        left_out = RUNTIME[path.partition("/")[0]]
        assert not options.keys() & left_out, path
        # some have their kind as the first argument; one process has no workers, and processes of
        # this machine no address
        missing = parameters.keys() - options.keys() - left_out - {"self"}
        elsewhere = set() if path.startswith("collector/ray") else {"address"}
        assert missing <= {"num_workers", *elsewhere, *list(parameters)[: len(built.args)]}, path


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments(name: str) -> None:
    if name == "gym" or "/" in name:
        pytest.importorskip("popgym", reason="gymnasium comes with the extra popgym")
    env = build(f"env/{name}")(num_envs=3, seed=0, device="cpu")
    assert env.batch_size == (3,)
    choices = CHOICES[f"env/{name}"]
    assert ("shaping" in env.rollout(2)["next"].keys()) == ("shaping_radii" in choices)
    for key in choices.keys() - {"id"}:
        assert getattr(env, key) == choices[key]
    if ask_env(env, "split") is not None:
        test = build(f"env/{name}")(split="test", device="cpu")
        assert len(test.train_tasks) == test.num_train_tasks
        assert len(test.test_tasks) == test.num_test_tasks == test.num_envs
        # tests are the task as it is
        assert "shaping" not in test.rollout(2)["next"].keys()
        assert not getattr(test, "mirror", False)


@pytest.mark.parametrize("name", MEMORIES)
def test_memories(name: str) -> None:
    module = build(f"memory/{name}")(
        input_size=5, output_size=3, in_key="x", out_key="y", device="cpu"
    )
    data = TensorDict({"x": torch.randn(4, 5), "is_init": torch.ones(4, 1).bool()}, [4])
    assert module(data)["y"].shape == (4, 3)
    assert isinstance(module, torch.nn.Module if name == "mlp" else MemoryModule)


def test_tuned_values_are_fields() -> None:
    """Cheaper than composing every task."""
    algos: dict[str, Any] = {"ppo": PPO, "sac": SAC, "reinforce": Reinforce, "grpo": GRPO}
    assert TUNED.keys() == algos.keys()
    for algo, name, values in [(x, *item) for x in algos for item in TUNED[x].items()]:
        assert name in ENVS
        assert values.keys() <= {"algo", "experiment", "network"}
        network = make_soft_actor_critic if algo == "sac" else make_actor_critic
        assert values["network"].keys() <= inspect.signature(network).parameters.keys()
        built, experiment = algos[algo](**values["algo"]), Experiment(**values["experiment"])
        if algo == "sac":
            built.check_buffer(experiment.num_envs)
        elif algo != "reinforce":
            built.check_batch(experiment.num_envs)


@pytest.mark.parametrize(
    "name",
    ["wind", "t_maze_passive", "memory_length", "point_robot", "key_to_door_100",
     "key_to_door_original", "visual_match_100"],
)  # fmt: skip
def test_sequences_of_sac_are_whole_episodes(name: str) -> None:
    env = build(f"env/{name}")(num_envs=1, seed=0)
    algo = SAC(**TUNED["sac"][name]["algo"])
    assert algo.rollout_length == getattr(env, "num_episodes", 1) * env.max_steps


@pytest.mark.parametrize(
    "name",
    ["wind", "t_maze_passive", "t_maze_active", "memory_length", "point_robot", "key_to_door_100",
     "visual_match_100", *(name for name in ENVS if name.startswith("popgym_"))],
)  # fmt: skip
def test_whole_episodes_fit_into_a_rollout(name: str) -> None:
    """REINFORCE and GRPO would leave out the rest."""
    env = build(f"env/{name}")(num_envs=1, seed=0)
    for algo, default in {"reinforce": Reinforce, "grpo": GRPO}.items():
        found = default(**TUNED[algo].get(name, {"algo": {}})["algo"])
        assert found.rollout_length == getattr(env, "num_episodes", 1) * env.max_steps


@pytest.mark.parametrize(
    "override",
    ["env=popgym/RepeatFirstEasy", "memory=fast_weights", "network=actor_critic",
     "collector=multi_sync", "logger=wandb"],
)  # fmt: skip
def test_a_choice_arrives(override: str) -> None:
    group, _, name = override.partition("=")
    # a task without values of its own
    task = () if group == "env" else ("env=point_robot_original",)
    config = compose_recipe(override, *task)
    found, expected = instantiate(config[group]), build(f"{group}/{name}")
    assert (found.func, found.args) == (expected.func, expected.args)
    assert {key: as_tuple(x) for key, x in found.keywords.items()} == {
        key: as_tuple(x) for key, x in expected.keywords.items()
    }


def test_values_of_a_task_come_with_it_and_the_command_line_has_the_last_word() -> None:
    tuned = TUNED["ppo"]["key_to_door_100"]
    config = compose_recipe(
        "env=key_to_door_100", "env.final_reward=2", "memory=lru", "size=params", "algo.lmbda=0.5"
    )
    assert instantiate(config.algo) == PPO(**(tuned["algo"] | {"lmbda": 0.5}))
    assert config.experiment.total_frames == tuned["experiment"]["total_frames"]
    assert (config.env.frames, config.env.final_reward) == ([10, 100, 3], 2.0)
    assert config.memory.memory_size == 47
    config = compose_recipe("memory=lru", "size=params", "memory.memory_size=5")
    assert config.memory.memory_size == 5
    # those of the default task are not asked for
    assert instantiate(config.algo) == PPO(lmbda=0.8)


@pytest.mark.parametrize(
    ("path", "option", "allowed", "runtime"),
    [
        ("memory/shm", "backend", "auto reference chunked numba triton",
         {"input_size": 5, "output_size": 3, "in_key": "x", "out_key": "y"}),
        ("memory/shm", "calibration", "random fixed neural none constant noise",
         {"input_size": 5, "output_size": 3, "in_key": "x", "out_key": "y"}),
        ("collector/single", "backend", "single multi_sync multi_async ray ray_async",
         {"make_env": None, "policy": None, "num_envs": 1, "rollout_length": 1, "total_frames": 1}),
        ("logger/csv", "kind", "csv tensorboard wandb", {"run_dir": "run"}),
    ],
    ids=["backend", "calibration", "collector", "logger"],
)  # fmt: skip
def test_unknown_option_lists_the_others(
    path: str, option: str, allowed: str, runtime: dict[str, Any]
) -> None:
    """Where a recipe takes its parts."""
    node = MEMBERS[path].make()
    make = instantiate(node, **{option: "foo"}, _target_wrapper_=pydantic_parser)
    with pytest.raises(ValueError, match=option) as error:
        make(**runtime)
    assert all(f"'{name}'" in str(error.value) for name in allowed.split())


def test_the_csv_logger_is_none() -> None:
    assert build("logger/csv").func is make_logger
    assert build("logger/csv")(run_dir="run") is None


class TestMistakes:
    def test_unknown_member_lists_the_others(self) -> None:
        for group in ("env", "memory", "algo"):
            with pytest.raises(MissingConfigException) as error:
                compose_recipe(f"{group}=foo")
            found = str(error.value).split(f"Available options in '{group}':")[1].split()
            members = (path.split("/") for path in MEMBERS)
            assert {name for first, name, *rest in members if first == group and not rest} <= {
                *found
            }

    @pytest.mark.parametrize(
        "override",
        ["memory.memory_size=large", "env.max_steps=1.5", "algo.epochs=null",
         "memory.sise=3", "env.seed=1", "sed=1"],
    )  # fmt: skip
    def test_wrong_type_or_unknown_key(self, override: str) -> None:
        key = override.partition("=")[0]
        with pytest.raises(ConfigCompositionException, match=re.escape(key)):
            compose_recipe(override)


@pytest.mark.parametrize(
    ("env", "memory", "keys"),
    [
        ("wind", "shm", ("relu", "sum")),
        ("popgym_repeat_previous_hard", "shm", ("relu", "l2")),
        ("popgym_autoencode_medium", "shm", ("identity", "l2")),
        ("popgym_autoencode_easy", "shm_none", ("identity", "l2")),
        ("popgym_autoencode_easy", "gru", (None, None)),
    ],
)
@pytest.mark.parametrize("algo", ["ppo", "sac", "reinforce", "grpo"])
def test_keys_suit_the_task(
    algo: str, env: str, memory: str, keys: tuple[str | None, str | None]
) -> None:
    config = compose_recipe(f"env={env}", f"memory={memory}", algo=algo)
    assert (config.memory.get("feature_map"), config.memory.get("qk_norm")) == keys


@pytest.mark.parametrize(
    ("overrides", "span"),
    [
        (["env=wind"], 100),
        (["env=visual_match_250", "memory=shm_none"], 275),
        (["env=visual_match_250", "algo.rollout_length=50"], 50),
        (["env=popgym_autoencode_easy"], 103),
        (["env=popgym_autoencode_easy", "memory=shm_neural", "size=params"], 103),
        (["env=popgym_autoencode_hard"], 311),
        (["env=popgym_autoencode_easy", "memory.span=7"], 7),
        (["env=wind", "memory.span=null"], None),
    ],
)
def test_the_start_suits_the_sequences(overrides: list[str], span: int | None) -> None:
    assert compose_recipe(*overrides).memory.span == span
    assert "span" not in compose_recipe(*overrides[:1], "memory=gru").memory


def test_values_of_shm() -> None:
    for key, values in SHM_VALUES.items():
        algo, _, task = key.rpartition("/")
        assert not algo or algo in TUNED, key
        assert any(env.startswith(task) for env in ENVS), key
        SHM(8, 8, span=10, **values)
    # the command line has the last word
    autoencode = ("env=popgym_autoencode_easy", "memory=shm")
    chosen = compose_recipe(*autoencode, "memory.feature_map=softplus", "memory.qk_norm=sum")
    assert (chosen.memory.feature_map, chosen.memory.qk_norm) == ("softplus", "sum")
    # not by accident, where names of a memory and a task have the same beginning
    assert "suited/shm/popgym_autoencode_easy" in MEMBERS
    assert not any(path.startswith("suited/") and "/gru/" in path for path in MEMBERS)
    # with one algorithm
    assert "suited/sac/shm/visual_match_100" in MEMBERS
    assert "suited/shm/visual_match_100" not in MEMBERS


@pytest.mark.parametrize("memory", [name for name in MEMORIES if name.startswith("shm")])
def test_only_calibrations_that_can_forget_do(memory: str) -> None:
    config = compose_recipe("env=point_robot", f"memory={memory}")
    forgets = config.memory.calibration in ("random", "fixed")
    assert config.memory.forget == forgets
    assert config.memory.clamp == 100.0
    # and it can be built
    instantiate(config.memory)(input_size=8, output_size=8, in_key="x", out_key="y")


@pytest.mark.parametrize("given", ["memory.span=null", "memory.calibration=neural"])
def test_rows_that_forget_need_a_span_and_a_table(given: str) -> None:
    config = compose_recipe("env=point_robot", given)
    with pytest.raises(Exception, match="or leave it out, forget=False"):
        instantiate(config.memory)(input_size=8, output_size=8, in_key="x", out_key="y")


def test_runs_with_released_keys_have_them() -> None:
    runs = [run for run in SUITES["ablation"] if run.variant == "sum"]
    assert len(runs) == 30
    for env in {run.env for run in runs}:
        run = next(run for run in runs if run.env == env)
        config = compose_recipe(*(x for x in run.overrides if not x.startswith("hydra")))
        assert (config.memory.feature_map, config.memory.qk_norm) == ("relu", "sum")
