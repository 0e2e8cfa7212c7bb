"""The config groups: what `python recipes/ppo_shm.py env=... memory=...` can choose from.

Adding a member is one line here; its options and their defaults come from its signature.
"""

from __future__ import annotations

from typing import Any

from hydra_zen import ZenStore, builds, make_custom_builds_fn

from torchrl_shm.configs.algo import PPO
from torchrl_shm.envs import WindEnv
from torchrl_shm.modules import SHMModule, make_gru, make_lstm, make_mlp
from torchrl_shm.training import RowCollector, make_logger

# factories: the recipe calls them with what only it knows, which stays out of the config
_partial = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)

_ENV_RUNTIME = ("num_envs", "split", "seed", "device")
_MEMORY_RUNTIME = (
    "input_size", "output_size", "cell", "in_key", "in_keys", "out_key", "out_keys",
    "theta_index_key", "is_init_key", "burn_in", "default_recurrent_mode", "device", "dtype",
)  # fmt: skip
_COLLECTOR_RUNTIME = (
    "make_env", "policy", "num_envs", "row_length", "total_frames", "seed", "device",
)  # fmt: skip

groups = ZenStore(name="torchrl_shm", deferred_hydra_store=True)

env = groups(group="env")
# help in training only: discs from a tenth of the goal, for precision, to beyond where a random
# policy is carried, and twice the winds that the training tasks have
_WIND: dict[str, Any] = {
    "zen_exclude": _ENV_RUNTIME,
    "shaping_radii": (0.001, 10.0),
    "mirror": True,
}
env(_partial(WindEnv, **_WIND), name="wind")
env(_partial(WindEnv, num_train_tasks=10, num_test_tasks=190, **_WIND), name="wind_hard")
env(
    _partial(
        WindEnv,
        num_tasks=60,
        num_train_tasks=40,
        num_test_tasks=20,
        max_wind=0.08,
        goal_radius=0.03,
        max_steps=75,
        **_WIND,
    ),
    name="wind_original",
)

memory = groups(group="memory")
memory(_partial(SHMModule, zen_exclude=_MEMORY_RUNTIME), name="shm")
memory(_partial(make_gru, zen_exclude=_MEMORY_RUNTIME), name="gru")
memory(_partial(make_lstm, zen_exclude=_MEMORY_RUNTIME), name="lstm")
memory(_partial(make_mlp, zen_exclude=_MEMORY_RUNTIME), name="mlp")

algo = groups(group="algo")
algo(builds(PPO, populate_full_signature=True), name="ppo")

collector = groups(group="collector")
collector(_partial(RowCollector, zen_exclude=(*_COLLECTOR_RUNTIME, "num_workers")), name="single")
collector(
    _partial(RowCollector, zen_exclude=_COLLECTOR_RUNTIME, backend="multi_sync"), name="multi_sync"
)

logger = groups(group="logger")
for kind in ("csv", "tensorboard", "wandb"):
    logger(_partial(make_logger, kind=kind, zen_exclude=("run_dir",)), name=kind)
