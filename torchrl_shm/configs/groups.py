"""The config groups: what `python recipes/ppo_shm.py env=... memory=...` can choose from.

Adding a member is one line here; its options and their defaults come from its signature.
"""

from __future__ import annotations

from typing import Any, get_args

from hydra_zen import ZenStore, builds, make_custom_builds_fn

from torchrl_shm.configs.algo import PPO
from torchrl_shm.configs.memories import MEMORIES
from torchrl_shm.configs.sizes import SIZES
from torchrl_shm.envs import (
    KeyToDoorEnv,
    MemoryLengthEnv,
    PointRobotEnv,
    TMazeEnv,
    VisualMatchEnv,
    WindEnv,
    make_gym_env,
    make_popgym_env,
    popgym,
)
from torchrl_shm.training import RolloutCollector, make_logger

# factories: the recipe calls them with what only it knows, which stays out of the config
_partial = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)

_ENV_RUNTIME = ("num_envs", "split", "seed", "device")
_COLLECTOR_RUNTIME = (
    "make_env", "policy", "num_envs", "rollout_length", "total_frames", "seed", "device",
)  # fmt: skip

groups = ZenStore(name="torchrl_shm", deferred_hydra_store=True)

env = groups(group="env")
# values of the algorithm that suit a task, under the task's name; the command line overrides them
tuned = groups(group="tuned", package="algo")


def _task(name: str, target: Any, algo: dict[str, Any], **options: Any) -> None:
    env(_partial(target, zen_exclude=_ENV_RUNTIME, **options), name=name)
    if algo:
        tuned(algo, name=name)


# help in training only: discs from a tenth of the goal, for precision, to beyond where a random
# policy is carried
_RADII = (0.001, 10.0)
# and twice the winds that the training tasks have
_WIND: dict[str, Any] = {"shaping_radii": _RADII, "mirror": True}
_task("wind", WindEnv, {}, **_WIND)
_task("wind_hard", WindEnv, {}, num_train_tasks=10, num_test_tasks=190, **_WIND)
_task(
    "wind_original",
    WindEnv,
    {},
    num_tasks=60,
    num_train_tasks=40,
    num_test_tasks=20,
    max_wind=0.08,
    goal_radius=0.03,
    max_steps=75,
    **_WIND,
)

_POINT: dict[str, Any] = {"shaping_radii": _RADII}
_task("point_robot", PointRobotEnv, {}, **_POINT)
_task("point_robot_hard", PointRobotEnv, {}, num_train_tasks=10, num_test_tasks=190, **_POINT)
_task(
    "point_robot_original",
    PointRobotEnv,
    {},
    num_tasks=100,
    num_train_tasks=80,
    num_test_tasks=20,
    goal_radius=0.2,
    max_steps=60,
    **_POINT,
)

# rewards far away are worth as much as those at hand, and random actions have to go on
_DISCRETE: dict[str, Any] = {
    "gamma": 0.99,
    "entropy_coeff": 0.1,
    "learning_rate": 1e-3,
    "total_frames": 2_000_000,
}
_task("t_maze_passive", TMazeEnv, {**_DISCRETE, "rollout_length": 51}, length=50)
_task("t_maze_active", TMazeEnv, {**_DISCRETE, "rollout_length": 53}, length=50, passive=False)
_task("memory_length", MemoryLengthEnv, {**_DISCRETE, "rollout_length": 51})

# the field is chosen within a few steps: what is far away is noise of the apples, and the colour of
# the first room is learned through the memory, not through the discount
_MATCH: dict[str, Any] = {**_DISCRETE, "gamma": 0.9, "entropy_coeff": 0.02}
# the key is paid for a hundred steps or more after it was taken
_KEY: dict[str, Any] = {**_DISCRETE, "gamma": 0.998, "lmbda": 0.97, "entropy_coeff": 0.02}
for _frames in (100, 250, 500):
    _match = {**_MATCH, "rollout_length": _frames + 25}
    _rooms: dict[str, Any] = {"frames": (15, _frames, 10)}
    _task(f"visual_match_{_frames}", VisualMatchEnv, _match, **_rooms)
    _task(f"visual_match_active_{_frames}", VisualMatchEnv, _match, passive=False, **_rooms)
    _key = {**_KEY, "rollout_length": _frames + 13, "total_frames": 3_000_000}
    _task(f"key_to_door_{_frames}", KeyToDoorEnv, _key, frames=(10, _frames, 3))
_task(
    "key_to_door_original",
    KeyToDoorEnv,
    {**_KEY, "rollout_length": 85, "total_frames": 3_000_000},
    frames=(15, 60, 10),
    final_reward=5.0,
)

_POPGYM: dict[str, Any] = {
    "autoencode": popgym.AutoencodeEnv,
    "battleship": popgym.BattleshipEnv,
    "concentration": popgym.ConcentrationEnv,
    "count_recall": popgym.CountRecallEnv,
    "higher_lower": popgym.HigherLowerEnv,
    "mine_sweeper": popgym.MineSweeperEnv,
    "multiarmed_bandit": popgym.MultiarmedBanditEnv,
    "noisy_position_only_cart_pole": popgym.NoisyPositionOnlyCartPoleEnv,
    "noisy_position_only_pendulum": popgym.NoisyPositionOnlyPendulumEnv,
    "position_only_cart_pole": popgym.PositionOnlyCartPoleEnv,
    "position_only_pendulum": popgym.PositionOnlyPendulumEnv,
    "repeat_first": popgym.RepeatFirstEnv,
    "repeat_previous": popgym.RepeatPreviousEnv,
    "velocity_only_cart_pole": popgym.VelocityOnlyCartPoleEnv,
}
# environments in python are stepped one after the other, so a step of all takes as long as they are
_PYTHON: dict[str, Any] = {
    "num_envs": 32,
    "sequences_per_minibatch": 8,
    "total_frames": 500_000,
    "num_test_episodes": 64,
}
for _name, _target in _POPGYM.items():
    for _level in get_args(popgym.Level):
        _algo = {**_DISCRETE, "entropy_coeff": 0.01, "total_frames": 4_000_000}
        _task(f"popgym_{_name}_{_level}", _target, _algo, level=_level)
        # the package itself, for whoever wants the original
        _original = f"{_target.__name__.removesuffix('Env')}{_level.capitalize()}"
        _slow = {**_algo, **_PYTHON}
        env(
            _partial(make_popgym_env, _original, zen_exclude=(*_ENV_RUNTIME, "name")),
            name=_original,
            group="env/popgym",
        )
        tuned(_slow, name=_original, group="tuned/popgym")
env(_partial(make_gym_env, id="CartPole-v1", zen_exclude=_ENV_RUNTIME), name="gym")
tuned({"gamma": 0.99, **_PYTHON}, name="gym")

memory = groups(group="memory")
for _name, _config in MEMORIES.items():
    memory(_config, name=_name)
# how large: as its signature says, or comparable to the others by one measure
for _size in ("own", *SIZES):
    groups({}, group="size", name=_size, package="_global_")
sized = groups(group="sized", package="memory")
for _size, _options in SIZES.items():
    for _name, _values in _options.items():
        sized(_values, name=f"{_size}_{_name}")

algo = groups(group="algo")
algo(builds(PPO, populate_full_signature=True), name="ppo")

collector = groups(group="collector")
collector(
    _partial(RolloutCollector, zen_exclude=(*_COLLECTOR_RUNTIME, "num_workers")), name="single"
)
collector(
    _partial(RolloutCollector, zen_exclude=_COLLECTOR_RUNTIME, backend="multi_sync"),
    name="multi_sync",
)

logger = groups(group="logger")
for kind in ("csv", "tensorboard", "wandb"):
    logger(_partial(make_logger, kind=kind, zen_exclude=("run_dir",)), name=kind)
