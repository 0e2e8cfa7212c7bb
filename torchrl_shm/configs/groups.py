"""The groups that a command line chooses from, and where Hydra finds them.

A member is one line in `ENVS`, `MEMORIES`, `TUNED` or below; its options and their defaults come
from a signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra_zen import builds
from omegaconf import OmegaConf

from torchrl_shm.configs.algo import GRPO, PPO, SAC, Reinforce
from torchrl_shm.configs.envs import ENVS
from torchrl_shm.configs.memories import MEMORIES
from torchrl_shm.configs.presets import factory_config
from torchrl_shm.configs.sizes import SIZES
from torchrl_shm.configs.tuned import FORGETFUL, SHM_VALUES, TUNED
from torchrl_shm.networks import make_actor_critic, make_soft_actor_critic
from torchrl_shm.training import Experiment, RolloutCollector, make_logger


class Member(NamedTuple):
    """A member of a group.

    Attributes:
        make: makes its config.
        package: where in the configuration its values go. `None` is the place of its group.
    """

    make: Callable[[], Any]
    package: str | None = None


MEMORY_GROUPS = ("memory", "network/actor_memory")
"""Groups whose members are memories: that of the agent or its critic, and an actor's own."""

MEMBERS: dict[str, Member] = {}
"""By group and name, as in `env/wind` and `tuned/ppo/wind`."""


class GroupSource(ConfigSource):
    """Shows `MEMBERS` to Hydra, which asks for the few that a run needs.

    Hydra's own store wants all of them made beforehand, and copies them whenever it composes.
    """

    @staticmethod
    def scheme() -> str:
        """What its places on the search path begin with."""
        return "torchrl-shm"

    def available(self) -> bool:
        """Whether there is something to be found."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether there are members below a path."""
        return any(path.startswith(f"{config_path.rstrip('/')}/") for path in MEMBERS)

    def is_config(self, config_path: str) -> bool:
        """Whether a path is that of a member."""
        return config_path.removesuffix(".yaml") in MEMBERS

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names right below a path."""
        start = f"{config_path}/" if config_path else ""
        below = [path[len(start) :].split("/") for path in MEMBERS if path.startswith(start)]
        configs = {name for name, *rest in below if not rest}
        folders = {name for name, *rest in below if rest}
        found = {ObjectType.CONFIG: configs, ObjectType.GROUP: folders}
        return sorted(configs | folders if results_filter is None else found[results_filter])

    def load_config(self, config_path: str) -> ConfigResult:
        """Make the config of a member."""
        member = MEMBERS[config_path.removesuffix(".yaml")]
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.structured(member.make()),
            header={"package": member.package},
        )


class GroupSearchPath(SearchPathPlugin):
    """Puts `GroupSource` on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the groups behind the files of the user, which may replace members."""
        search_path.append("torchrl_shm", f"{GroupSource.scheme()}://")


Plugins.instance().register(GroupSource)
Plugins.instance().register(GroupSearchPath)

for _name in ENVS:
    MEMBERS[f"env/{_name}"] = Member(partial(ENVS.__getitem__, _name))
for _algo, _envs in TUNED.items():
    for _name, _values in _envs.items():
        MEMBERS[f"tuned/{_algo}/{_name}"] = Member(partial(dict, _values), "_global_")

for _name in MEMORIES:
    for _group in MEMORY_GROUPS:
        MEMBERS[f"{_group}/{_name}"] = Member(partial(MEMORIES.__getitem__, _name))
    if _name.startswith("shm"):
        # what it is told is to last as long as the sequences through which it learns
        _span = {"span": "${oc.select:algo.rollout_length,null}"}
        MEMBERS[f"spanned/{_name}"] = Member(partial(dict, _span), "memory")
        # options that suit the task
        for _env, (_key, _values) in product(ENVS, SHM_VALUES.items()):
            _algo, _, _task = _key.rpartition("/")
            if _env.startswith(_task):
                _suited = {k: x for k, x in _values.items() if k != "forget" or _name in FORGETFUL}
                _path = "/".join(filter(None, ("suited", _algo, _name, _env)))
                MEMBERS[_path] = Member(partial(dict, _suited), "memory")
# how large: as its signature says, or comparable to the others by one measure
for _size in ("own", *SIZES):
    MEMBERS[f"size/{_size}"] = Member(dict, "_global_")
for _size, _options in SIZES.items():
    for _name, _values in _options.items():
        MEMBERS[f"sized/{_size}_{_name}"] = Member(partial(dict, _values), "memory")

_NETWORKS = {"actor_critic": make_actor_critic, "soft_actor_critic": make_soft_actor_critic}
_ALGOS = {"ppo": PPO, "sac": SAC, "reinforce": Reinforce, "grpo": GRPO}
for _name, _make in _NETWORKS.items():
    MEMBERS[f"network/{_name}"] = Member(
        partial(factory_config, _make, zen_exclude=("env", "memory", "device"))
    )
MEMBERS["experiment/default"] = Member(partial(builds, Experiment, populate_full_signature=True))
for _name, _algo in _ALGOS.items():
    MEMBERS[f"algo/{_name}"] = Member(partial(builds, _algo, populate_full_signature=True))

_RUNTIME = (
    "make_env", "policy", "num_envs", "rollout_length", "total_frames", "seed", "device",
    "group_size", "reset_each_batch",
)  # fmt: skip
_COLLECTORS = {
    "single": (*_RUNTIME, "num_workers", "address"),
    **dict.fromkeys(("multi_sync", "multi_async"), (*_RUNTIME, "address")),
    **dict.fromkeys(("ray", "ray_async"), _RUNTIME),
}
for _backend, _left_out in _COLLECTORS.items():
    MEMBERS[f"collector/{_backend}"] = Member(
        partial(factory_config, RolloutCollector, zen_exclude=_left_out, backend=_backend)
    )

for _kind in ("csv", "tensorboard", "wandb"):
    MEMBERS[f"logger/{_kind}"] = Member(
        partial(factory_config, make_logger, kind=_kind, zen_exclude=("run_dir",))
    )


def leave_out_other_recipes(algo: str, network: str) -> None:
    """Remove from `MEMBERS` what only the other recipes of this package can use.

    Args:
        algo: the member of the group `algo` that stays.
        network: the member of the group `network` that stays.
    """
    for group, names, own in (("algo", _ALGOS, algo), ("network", _NETWORKS, network)):
        for name in {*names} - {own}:
            MEMBERS.pop(f"{group}/{name}", None)
    # learns from old data
    if algo in {*_ALGOS} - {"sac"}:
        for name in ("multi_async", "ray_async"):
            MEMBERS.pop(f"collector/{name}", None)
    if network != "soft_actor_critic":
        for path in [path for path in MEMBERS if path.startswith("network/actor_memory/")]:
            del MEMBERS[path]
