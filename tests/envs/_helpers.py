"""All batched environments in a small size, and how tests play them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_shm import envs
from torchrl_shm.envs import BatchedEnv, popgym

POPGYM: dict[str, Any] = {
    name.removesuffix("Env"): getattr(popgym, name)
    for name in popgym.__all__
    if name.endswith("Env") and name != "POPGymEnv"
}
_radii: dict[str, Any] = {"shaping_radii": (0.001, 10.0)}
_rooms: dict[str, Any] = {"frames": (2, 5, 3)}
# episodes are of more than six steps
MAKERS: dict[str, Callable[..., BatchedEnv]] = {
    "Wind": partial(envs.WindEnv, max_steps=8, goal_radius=0.95),
    "WindMirrored": partial(envs.WindEnv, max_steps=8, mirror=True, repeat_failed=0.5, **_radii),
    "PointRobot": partial(envs.PointRobotEnv, max_steps=4, goal_radius=0.7),
    "PointRobotShaped": partial(
        envs.PointRobotEnv, max_steps=8, num_episodes=1, mirror=True, repeat_failed=0.5, **_radii
    ),
    "TMaze": partial(envs.TMazeEnv, length=6),
    "TMazeActive": partial(envs.TMazeEnv, length=6, passive=False),
    "MemoryLength": partial(envs.MemoryLengthEnv, length=7),
    "MemoryLengthBits": partial(envs.MemoryLengthEnv, length=7, num_bits=3),
    "KeyToDoor": partial(envs.KeyToDoorEnv, **_rooms),
    "VisualMatch": partial(envs.VisualMatchEnv, **_rooms),
    "VisualMatchActive": partial(
        envs.VisualMatchEnv, passive=False, image=True, dtype="float32", **_rooms
    ),
    **POPGYM,
    "BattleshipApart": partial(popgym.BattleshipEnv, joint_action=False),
}


def step(env: BatchedEnv, action: Tensor | int) -> TensorDictBase:
    action = torch.as_tensor(action)
    if not action.ndim:
        action = action.expand(env.batch_size)
    return env.step(TensorDict({"action": action}, batch_size=env.batch_size))["next"]


def inject(env: BatchedEnv, reset: Tensor | None = None, **layout: Tensor) -> TensorDictBase:
    entries = layout if reset is None else {**layout, "_reset": reset}
    return env.reset(TensorDict(entries, batch_size=env.batch_size), set_state=True)


def random_action(env: BatchedEnv) -> Tensor:
    return env.action_spec.rand()
