"""Collectors as a choice of one option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv

CollectorBackend = Literal["single", "multi_sync"]
"""`"single"`: this process. `"multi_sync"`: worker processes, each with a batched environment."""


class _EnvFactory:
    """Makes a worker's environment; a class, because workers receive it by pickling."""

    def __init__(self, make_env: Callable[..., EnvBase], **options: Any) -> None:
        self.make_env = make_env
        self.options = options

    def __call__(self) -> EnvBase:
        # the sum of the rewards of an episode, for the logs
        return TransformedEnv(self.make_env(**self.options), RewardSum())


class RowCollector:
    """Yields batches of rows `[num_envs, row_length]`, whichever backend collects them.

    Args:
        make_env: makes a batched environment from `num_envs` and, if it is given, `device`.
        policy: the policy; its memory's transforms are added to the environments.
        num_envs: environments over all workers.
        row_length: steps per environment and batch.
        total_frames: frames after which iteration ends, rounded up to whole batches.
        seed: seed of the environments, and of torch's generator in worker processes.
        backend: see `CollectorBackend`.
        num_workers: worker processes of `"multi_sync"`; must divide `num_envs`.
        device: device of environments and policy.

    Raises:
        ValueError: `backend` is unknown or `num_workers` does not divide `num_envs`.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import RowCollector, make_actor_critic
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=["observation"])
        >>> policy = operator.get_policy_operator()
        >>> collector = RowCollector(WindEnv, policy, num_envs=4, row_length=10, total_frames=80)
        >>> [tuple(batch.shape) for batch in collector]
        [(4, 10), (4, 10)]
        >>> collector.close()
    """

    def __init__(
        self,
        make_env: Callable[..., EnvBase],
        policy: TensorDictModuleBase,
        *,
        num_envs: int,
        row_length: int,
        total_frames: int,
        seed: int = 0,
        backend: CollectorBackend = "single",
        num_workers: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        if backend not in get_args(CollectorBackend):
            raise ValueError(
                f"backend={backend!r} is unknown; choose one of {get_args(CollectorBackend)}"
            )
        self.frames_per_batch = num_envs * row_length
        # whole batches: TorchRL would warn about, and collect, a partial one
        self.num_batches = -(-total_frames // self.frames_per_batch)
        options: dict[str, Any] = {
            "frames_per_batch": self.frames_per_batch,
            "total_frames": self.num_batches * self.frames_per_batch,
            "device": device,
            "auto_register_policy_transforms": True,
        }
        env_options: dict[str, Any] = {} if device is None else {"device": device}
        if backend == "multi_sync":
            if num_workers < 1 or num_envs % num_workers:
                raise ValueError(
                    f"num_workers={num_workers} must divide num_envs={num_envs}, so that all "
                    "workers collect as many rows"
                )
            factory: Any = _EnvFactory(make_env, num_envs=num_envs // num_workers, **env_options)
            options |= {
                "backend": "process",
                "num_collectors": num_workers,
                "sync": True,
                "cat_results": "stack",
                "use_buffers": False,
                # TorchRL would take one away for every worker
                "num_threads": torch.get_num_threads(),
            }
            self._collector: Any = Collector(factory, policy, **options)
        else:
            factory = _EnvFactory(make_env, num_envs=num_envs, **env_options)
            self._collector = Collector(factory(), policy, **options)
        self._collector.set_seed(seed)
        # the first episodes, too, shall be those of the seed
        self._collector.reset()

    def __iter__(self) -> Iterator[TensorDictBase]:
        for batch in self._collector:
            # workers come stacked in front of the environments
            rows = batch.reshape(-1, batch.shape[-1])
            yield rows.refine_names(..., "time")

    def update_policy(self) -> None:
        """Send the current parameters to where the policy acts."""
        self._collector.update_policy_weights_()

    def close(self) -> None:
        """End the workers."""
        threads = torch.get_num_threads()
        self._collector.shutdown()
        # TorchRL adds one for every worker
        torch.set_num_threads(threads)
