"""The groups that a command line chooses from, as one store for Hydra.

A member is one line in `ENVS`, `MEMORIES`, `TUNED` or below; its options and their defaults come
from a signature.
"""

from __future__ import annotations

from typing import Any

from hydra_zen import ZenStore, builds, make_custom_builds_fn

from torchrl_shm.configs.algo import PPO
from torchrl_shm.configs.envs import ENVS
from torchrl_shm.configs.memories import MEMORIES
from torchrl_shm.configs.sizes import SIZES
from torchrl_shm.configs.tuned import TUNED
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import Experiment, RolloutCollector, make_logger

# factories: a recipe calls them with what only it knows, which stays out of the config
_partial = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)

groups = ZenStore(name="torchrl_shm", deferred_hydra_store=True)


def put(group: str, name: str, config: Any, package: str | None = None) -> None:
    """Store a member; a `/` in its name makes it a member of a group below.

    Args:
        group: the group.
        name: the member.
        config: the config.
        package: where in the configuration its values go. Default: the group.
    """
    folder, _, last = name.rpartition("/")
    place: Any = {} if package is None else {"package": package}
    groups(config, group=f"{group}/{folder}" if folder else group, name=last, **place)


for _name, _config in ENVS.items():
    put("env", _name, _config)
for _algo, _envs in TUNED.items():
    for _name, _values in _envs.items():
        put(f"tuned/{_algo}", _name, _values, "_global_")

for _name, _config in MEMORIES.items():
    put("memory", _name, _config)
# how large: as its signature says, or comparable to the others by one measure
for _size in ("own", *SIZES):
    put("size", _size, {}, "_global_")
for _size, _options in SIZES.items():
    for _name, _values in _options.items():
        put("sized", f"{_size}_{_name}", _values, "memory")

put("network", "actor_critic", _partial(make_actor_critic, zen_exclude=("env", "memory", "device")))

put("experiment", "default", builds(Experiment, populate_full_signature=True))

put("algo", "ppo", builds(PPO, populate_full_signature=True))

_RUNTIME = (
    "make_env", "policy", "num_envs", "rollout_length", "total_frames", "seed", "device",
)  # fmt: skip
put("collector", "single", _partial(RolloutCollector, zen_exclude=(*_RUNTIME, "num_workers")))
put(
    "collector",
    "multi_sync",
    _partial(RolloutCollector, zen_exclude=_RUNTIME, backend="multi_sync"),
)

for _kind in ("csv", "tensorboard", "wandb"):
    put("logger", _kind, _partial(make_logger, kind=_kind, zen_exclude=("run_dir",)))
