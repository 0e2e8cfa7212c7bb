"""Collectors as a choice of one option."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, Transform, TransformedEnv

from torchrl_shm.checks import check_option
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import ask_env
from torchrl_shm.networks.normalization import find_normalized
from torchrl_shm.torchrl_private import get_carrier, set_carrier
from torchrl_shm.training.finite import FiniteSteps
from torchrl_shm.training.ranks import everyone
from torchrl_shm.training.stepping import FiniteRewardSum, SteppingCollector

CollectorBackend = Literal["single", "multi_sync", "multi_async", "ray", "ray_async"]
"""Where a batch comes from.

`"single"`: this process. `"multi_sync"`: worker processes, each with a batched environment; all
have the policy of the last update, and wait while it learns. `"multi_async"`: workers that do not
wait. A batch comes from one of them, and was collected by a policy that is some updates old: for
algorithms that learn from old data. `"ray"` and `"ray_async"`: the same in actors of Ray, which
may be on other machines.
"""


class _EnvFactory:
    """Makes a collector's environment; a class, because workers receive it by pickling."""

    def __init__(
        self, make_env: Callable[..., EnvBase], *, worker: bool, group_size: int, **options: Any
    ) -> None:
        self.make_env = make_env
        self.worker = worker
        self.group_size = group_size
        self.options = options

    def __call__(self) -> EnvBase:
        if self.worker:
            _leave_signals_to_the_parent()
            # TorchRL tells of every transform that moves from one stack to another
            logging.getLogger("torchrl").setLevel(logging.WARNING)
        env = self.make_env(**self.options)
        if self.group_size > 1:
            _set_groups(env, self.group_size)
        batched = isinstance(env, BatchedEnv)
        transformed = TransformedEnv(env, FiniteSteps())
        # the sum of the rewards of an episode, for the logs; behind it, for it is no observation
        transformed.append_transform(FiniteRewardSum())
        carried = _Carried(exact=batched, worker=self.worker)
        transformed.append_transform(carried)
        return transformed


def _set_groups(env: EnvBase, group_size: int) -> None:
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if ask_env(env, "group_size") is None:
        raise ValueError(
            f"group_size={group_size} needs a task that draws layouts, which {type(env).__name__} "
            "does not; use a task of torchrl_shm"
        )
    env.group_size = group_size


def _leave_signals_to_the_parent() -> None:
    """Make a worker ignore the signals that a terminal or a scheduler sends to all processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the parent ends its workers with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class _Carried(Transform):
    """Adds to an environment's `state_dict` what is carried from one batch to the next.

    These are the running episodes, the TensorDict that the policy reads next, with its memory, and
    in a worker process torch's default generator. TorchRL's collectors save the state of their
    transforms, in workers too, but none of these.

    Args:
        exact: whether the environment's state is tensors; if not, episodes start anew.
        worker: whether this is a worker process, whose generator is saved here only.
    """

    def __init__(self, *, exact: bool, worker: bool) -> None:
        super().__init__()
        self.exact = exact
        self.worker = worker

    def get_extra_state(self) -> dict[str, Any]:
        """Return tensors only: a worker sends its state as a TensorDict."""
        state: dict[str, Any] = {}
        if self.exact:
            carrier = self._carrier()
            state["carrier"] = carrier.exclude("collector").to_dict(retain_none=False)
            state["env"] = self._env().get_extra_state()
        if self.worker:
            state["rng"] = torch.get_rng_state()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` returned."""
        if "env" in state:
            self._env().set_extra_state(state["env"])
            carrier = self._carrier()
            saved = TensorDict(state["carrier"], carrier.batch_size, device=carrier.device)
            saved.update(carrier.select("collector", strict=False))
            set_carrier(self.collector, saved)
        if "rng" in state:
            torch.set_rng_state(state["rng"].cpu())

    def _env(self) -> BatchedEnv:
        container: Any = self.container
        return container.base_env

    def _carrier(self) -> TensorDictBase:
        carrier = get_carrier(self.collector)
        assert carrier is not None, "only collectors save and load this state"
        return carrier


class RolloutCollector:
    """Yields batches of sequences `[num_envs, rollout_length]`, whichever backend collects them.

    Args:
        make_env: makes a batched environment from `num_envs` and, if it is given, `device`.
        policy: the policy; its memory's transforms are added to the environments.
        num_envs: environments over all workers.
        rollout_length: steps per environment and batch.
        total_frames: frames after which iteration ends, rounded up to whole batches.
        seed: seed of the environments, and of torch's generator in worker processes.
        backend: see `CollectorBackend`.
        num_workers: workers of all backends but `"single"`; must divide `num_envs`.
        address: Ray's; `"local"` starts one on this machine that ends with the collector, `"auto"`
            joins the cluster of this machine, `"host:port"` that of another.
        group_size: environments that play the same layout, see `BatchedEnv.group_size`.
        reset_each_batch: start new episodes with every batch, instead of going on with those of the
            last one.
        device: device of environments and policy.

    Raises:
        ValueError: `backend` is unknown, `num_workers` does not divide `num_envs`, or `group_size`
            does not divide the environments of a worker or needs a task that draws layouts.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import RolloutCollector
        >>> from torchrl_shm.networks import make_actor_critic
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=["observation"])
        >>> policy = operator.get_policy_operator()
        >>> sizes = {"num_envs": 4, "rollout_length": 10, "total_frames": 80}
        >>> collector = RolloutCollector(WindEnv, policy, **sizes)
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
        rollout_length: int,
        total_frames: int,
        seed: int = 0,
        backend: CollectorBackend = "single",
        num_workers: int = 2,
        address: str = "local",
        group_size: int = 1,
        reset_each_batch: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        check_option("backend", backend, CollectorBackend)
        self._ahead = backend in ("multi_async", "ray_async")
        self._ray = backend in ("ray", "ray_async")
        self._threads = torch.get_num_threads()
        # one of the workers that do not wait gives a batch, of its own environments
        self.frames_per_batch = num_envs * rollout_length // (num_workers if self._ahead else 1)
        # whole batches: TorchRL would warn about, and collect, a partial one
        self.num_batches = -(-total_frames // self.frames_per_batch)
        options: dict[str, Any] = {
            "frames_per_batch": self.frames_per_batch,
            "total_frames": self.num_batches * self.frames_per_batch,
            "device": device,
            "reset_at_each_iter": reset_each_batch,
        }
        env_options: dict[str, Any] = {} if device is None else {"device": device}
        if backend != "single":
            if num_workers < 1 or num_envs % num_workers:
                raise ValueError(
                    f"num_workers={num_workers} must divide num_envs={num_envs}, so that all "
                    "workers collect as many sequences"
                )
            num_envs //= num_workers
            if group_size < 1 or num_envs % group_size:
                raise ValueError(
                    f"group_size={group_size} must divide the {num_envs} environments of each of "
                    f"{num_workers} workers, so that no group is in two of them"
                )
            if group_size > 1:
                # here, where an error is not lost in a worker
                _set_groups(make_env(num_envs=num_envs, seed=seed, **env_options), group_size)
            factory: Any = _EnvFactory(
                make_env, worker=True, group_size=group_size, num_envs=num_envs, **env_options
            )
            options |= {"sync": not self._ahead}
            if self._ray:
                from torchrl_shm.training.ray_workers import RayWorkers

                self._collector: Any = RayWorkers(
                    factory, policy, num_workers=num_workers, address=address, **options
                )
            else:
                self._collector = Collector(
                    factory,
                    policy,
                    backend="process",
                    num_collectors=num_workers,
                    collector_class=SteppingCollector,
                    cat_results="stack",
                    use_buffers=False,
                    # TorchRL would take one away for every worker
                    num_threads=self._threads,
                    auto_register_policy_transforms=True,
                    **options,
                )
        else:
            factory = _EnvFactory(
                make_env, worker=False, group_size=group_size, num_envs=num_envs, **env_options
            )
            self._collector = SteppingCollector(
                factory(),
                policy,
                # sequences are whole, so no sampler has to know of which episode a step is
                track_traj_ids=False,
                auto_register_policy_transforms=True,
                **options,
            )
        # on another device the collector has a copy
        self._shares_policy = backend == "single" and self._collector.policy is policy
        self._policy = policy
        # what the last batch adds to the statistics of a policy that normalizes observations
        self._seen: list[Any] = []
        self._seed = seed
        self._frames = 0
        self._start(seed)

    def _start(self, seed: int) -> None:
        self._collector.set_seed(seed)
        # so that the seed decides the first episodes as well
        self._collector.reset()

    def __iter__(self) -> Iterator[TensorDictBase]:
        try:
            yield from self._batches()
        finally:
            self._restore_threads()

    def _batches(self) -> Iterator[TensorDictBase]:
        for batch in self._collector:
            self._frames += batch.numel()
            # workers come stacked in front of the environments
            sequences = batch.reshape(-1, batch.shape[-1])
            self._seen = [
                (part, part.measure(*(sequences[key] for key in keys)))
                for part, keys in find_normalized(self._policy)
            ]
            yield sequences.refine_names(..., "time")
            # one that runs ahead does not know of the frames before it was resumed
            if self._frames >= self.num_batches * self.frames_per_batch:
                return

    def update_policy(self) -> None:
        """Send the current parameters to where the policy acts.

        A policy that normalizes observations counts those of the last batch from now on; until
        then, training on that batch sees what the policy has seen that collected it.

        Raises:
            RuntimeError: a worker has died.
        """
        # TorchRL would wait for its answer without end; those of Ray get parameters with their work
        for worker in getattr(self._collector, "procs", ()):
            if not worker.is_alive():
                raise RuntimeError(f"worker {worker.name} has died, exit code {worker.exitcode}")
        for part, own in self._seen:
            for moments in everyone(own):
                part.update(moments)
        self._seen = []
        # the policy that learns may be the one that acts
        if not (self._ray or self._shares_policy):
            self._collector.update_policy_weights_()

    def state_dict(self) -> dict[str, Any]:
        """Return what is carried from one batch to the next; to be called between two batches.

        Returns:
            The running episodes, the generators of environments and workers, the memories and the
            number of frames. Episodes of environments whose state is not tensors (`env=gym`) are
            missing, and those of workers that run ahead: they are in the middle of a batch.
        """
        if self._ahead:
            return {"frames": self._frames}
        state: Any = self._collector.state_dict()
        for part in _workers(state):
            # the policy is saved by whoever trains it
            part.pop("policy_state_dict", None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with the policy's present parameters.

        Episodes that could not be saved start anew, from a seed that differs from the first one.

        Args:
            state_dict: of a collector with the same options.
        """
        self._frames = int(state_dict["frames"])
        if self._ahead:
            self._start(self._seed + self._frames)
            self.update_policy()
            return
        state: dict[str, Any] = {
            key: dict(part) if key.startswith("worker") else part
            for key, part in state_dict.items()
        }
        for part in _workers(state):
            part["policy_state_dict"] = self._policy.state_dict()
        if not _is_exact(state):
            # not the first episodes again
            self._start(self._seed + int(state["frames"]))
        self._collector.load_state_dict(state)
        self.update_policy()

    def close(self) -> None:
        """End the workers, by force if they do not end within seconds."""
        self._collector.shutdown(timeout=5)
        self._restore_threads()

    def _restore_threads(self) -> None:
        # TorchRL adds one for every worker when it ends them, as it does after the last batch
        torch.set_num_threads(self._threads)


def _workers(state: Mapping[str, Any]) -> list[Any]:
    """The states of the collectors that step environments: that of this process, or workers'."""
    workers = [part for key, part in state.items() if key.startswith("worker")]
    return workers or [state]


def _is_exact(state: Mapping[str, Any]) -> bool:
    return all(
        "env" in extra
        for part in _workers(state)
        for key, extra in part["env_state_dict"].items()
        if key.endswith("_extra_state")
    )
