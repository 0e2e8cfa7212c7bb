"""The environments to choose from: names, classes and options of the group `env`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from torchrl_shm.configs.presets import Presets, factory_config
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

# arguments that a run passes itself; they stay out of the config
RUNTIME = ("num_envs", "split", "seed", "device")


def env_config(make_env: Any, **options: Any) -> Any:
    """Make the config of an environment from its class or factory.

    Args:
        make_env: class or function; its keyword arguments become the options of the config, with
            their types and defaults, but for `num_envs`, `split`, `seed` and `device`, which a run
            passes itself.
        **options: values that differ from the defaults.

    Returns:
        A config that builds the factory.

    Examples:
        >>> from hydra_zen import instantiate
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.configs import env_config
        >>> instantiate(env_config(WindEnv, max_steps=20))(num_envs=3).batch_size
        torch.Size([3])
    """
    return factory_config(make_env, zen_exclude=RUNTIME, **options)


# help in training only: discs from a tenth of the goal or less, for precision, to beyond where a
# random policy is carried, and in a mirror twice the tasks
_WIND: dict[str, Any] = {"shaping_radii": (0.001, 10.0), "mirror": True}
# larger discs would pay for resting in the middle of all goals more than for a search
_POINT: dict[str, Any] = {"shaping_radii": (0.001, 0.3), "mirror": True}
_HARD = {"num_train_tasks": 10, "num_test_tasks": 190}


def _preset(make_env: Any, **options: Any) -> Callable[[], Any]:
    return partial(env_config, make_env, **options)


_ENVS: dict[str, Callable[[], Any]] = {
    "wind": _preset(WindEnv, **_WIND),
    "wind_hard": _preset(WindEnv, **_HARD, **_WIND),
    "wind_original": _preset(
        WindEnv, num_tasks=60, num_train_tasks=40, num_test_tasks=20, max_wind=0.08,
        goal_radius=0.03, max_steps=75, **_WIND,
    ),
    "point_robot": _preset(PointRobotEnv, **_POINT),
    "point_robot_hard": _preset(PointRobotEnv, **_HARD, **_POINT),
    "point_robot_original": _preset(
        PointRobotEnv, num_tasks=100, num_train_tasks=80, num_test_tasks=20, goal_radius=0.2,
        max_steps=60, shaping_radii=(0.001, 10.0),
    ),
    "t_maze_passive": _preset(TMazeEnv, length=50),
    "t_maze_active": _preset(TMazeEnv, length=50, passive=False),
    "memory_length": _preset(MemoryLengthEnv),
    "key_to_door_original": _preset(KeyToDoorEnv, frames=(15, 60, 10), final_reward=5.0),
    # arguments of the environment as plain lists and dictionaries
    "gym": _preset(make_gym_env, id="CartPole-v1", hydra_convert="all"),
}  # fmt: skip

for _frames in (100, 250, 500):
    _rooms: dict[str, Any] = {"frames": (15, _frames, 10)}
    _ENVS[f"visual_match_{_frames}"] = _preset(VisualMatchEnv, **_rooms)
    _ENVS[f"visual_match_active_{_frames}"] = _preset(VisualMatchEnv, passive=False, **_rooms)
    _ENVS[f"key_to_door_{_frames}"] = _preset(KeyToDoorEnv, frames=(10, _frames, 3))

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
for _name, _target in _POPGYM.items():
    for _level in get_args(popgym.Level):
        _ENVS[f"popgym_{_name}_{_level}"] = _preset(_target, level=_level)
        # the original, from the package popgym
        _original = f"{_target.__name__.removesuffix('Env')}{_level.capitalize()}"
        _ENVS[f"popgym/{_original}"] = partial(
            factory_config, make_popgym_env, _original, zen_exclude=(*RUNTIME, "name")
        )

ENVS = Presets(_ENVS)
"""Configs by name; a name with a `/` is a member of a group below `env`."""
