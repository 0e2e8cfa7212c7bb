"""Workers in actors of Ray, which may be on other machines."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.collectors.distributed import RayCollector

from torchrl_shm.training.stepping import SteppingCollector

_SECONDS_TO_WAIT_FOR_CPUS = 60


class _Worker(SteppingCollector):
    """What runs in an actor."""

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        # as TorchRL's worker processes do
        torch.manual_seed(seed)
        np.random.seed(seed)
        return super().set_seed(seed, static_seed)

    def __bool__(self) -> bool:
        # asked by Ray about an error; a collector without an end has no length to tell it
        return True


class RayWorkers(RayCollector):
    """A `RayCollector` that can be used as TorchRL's collectors of worker processes are.

    Workers get the present parameters with every batch that they start.

    Args:
        factory: makes the environment of a worker, in the worker.
        policy: the policy.
        num_workers: actors, each of which takes a CPU.
        address: `"local"` starts Ray on this machine, anything else joins what runs there.
        device: device of environments and policy.
        options: of `RayCollector`.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no Ray runs at `address`.
        RuntimeError: there is no CPU for a worker.
    """

    def __init__(
        self,
        factory: Any,
        policy: Any,
        *,
        num_workers: int,
        address: str,
        device: torch.device | str | None,
        **options: Any,
    ) -> None:
        if find_spec("ray") is None:
            raise ModuleNotFoundError(
                'collector=ray needs the package ray; install it with pip install -e ".[ray]"'
            )
        self._own = device
        # it would tell its makers of every start
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        start: dict[str, Any] = {
            "address": address,
            "log_to_driver": False,
            "logging_level": "error",
        }
        if address == "local":
            start |= {
                "num_cpus": num_workers,
                "include_dashboard": False,
                # processes that would wait for other work
                "_system_config": {
                    "enable_worker_prestart": False,
                    "prestart_worker_first_driver": False,
                    # before Ray ends a run whose head is gone; by itself a minute
                    "gcs_rpc_server_reconnect_timeout_s": 30,
                },
            }
        gpus = 1 / num_workers if device is not None and torch.device(device).type == "cuda" else 0
        options |= {
            "device": device,
            "collector_class": _Worker,
            "collector_kwargs": {
                "auto_register_policy_transforms": True,
                "track_traj_ids": False,
            },
            "remote_configs": {"num_cpus": 1, "num_gpus": gpus},
            "ray_init_config": start,
            "update_after_each_batch": True,
        }
        try:
            with _in_words():
                super().__init__([factory] * num_workers, policy, **options)
        except ConnectionError as error:
            said = str(error).splitlines()[0]
            raise ConnectionError(f"collector.address={address}: {said}") from None

    def add_collectors(self, create_env_fn: list[Any], *args: Any, **kwargs: Any) -> None:
        """Start the workers, which Ray would let wait for free CPUs without a word and an end."""
        import ray  # pyright: ignore[reportMissingImports]

        limit = time.monotonic() + _SECONDS_TO_WAIT_FOR_CPUS
        while (free := ray.available_resources().get("CPU", 0)) < len(create_env_fn):
            if time.monotonic() > limit:
                raise RuntimeError(
                    f"collector=ray needs a CPU for each of {len(create_env_fn)} workers, and Ray "
                    f"has {free:g} free ones; give it more or use a smaller collector.num_workers"
                )
            time.sleep(0.1)
        super().add_collectors(create_env_fn, *args, **kwargs)

    def set_seed(self, seed: int, static_seed: bool = False) -> Any:
        """Seed every worker, and start new episodes, as other workers do."""
        with _in_words():
            last: Any = super().set_seed(seed, static_seed)
        self.reset()
        return last

    def reset(self) -> None:
        """Start new episodes."""
        with _in_words():
            self.map_fn("reset")

    def iterator(self) -> Iterator[TensorDictBase]:
        """Collect batches."""
        with _in_words():
            # what they were made with may be old
            policy: Any = self.policy
            self.update_policy_weights_(policy)
            batches: Any = super().iterator()
            for batch in batches:
                # actors take the device off
                yield batch if self._own is None else batch.to(self._own)

    def state_dict(self) -> dict[str, Any]:
        """The states of workers and the number of frames, as of other workers."""
        with _in_words():
            parts = self.map_fn("state_dict")
        state: dict[str, Any] = {f"worker{index}": part for index, part in enumerate(parts)}
        return state | {"frames": self.collected_frames}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        parts = [(state_dict[f"worker{index}"],) for index in range(self.num_workers)]
        with _in_words():
            self.map_fn("load_state_dict", parts)
        self.collected_frames = state_dict["frames"]


@contextmanager
def _in_words() -> Generator[None]:
    """What a worker raised, as this process would raise it, and its death in a line."""
    from ray.exceptions import (  # pyright: ignore[reportMissingImports]
        RayError,
        RayTaskError,
    )

    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        said = str(error).splitlines()
        reason = shorten(f"{said[0]} {said[-1]}", 250, placeholder=" ...")
        raise RuntimeError(f"a worker of Ray is gone: {reason}") from None
