"""Rows of whole batches, from this process or from others."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from tests._processes import Child
from tests.training._helpers import MEMORIES, make_operator, time_limit
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import RolloutCollector


class Failing(WindEnv):
    """Breaks in a step of its own choice."""

    def __init__(self, *args: Any, fail_at: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fail_at, self.steps = fail_at, 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        if self.steps == self.fail_at:
            raise ZeroDivisionError("the wind has stopped")
        return super()._step(tensordict)


class Opaque(EnvBase):
    """Hides that its state is tensors, as environments in Python do."""

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.__dict__["inner"] = inner = WindEnv(num_envs, **options)
        super().__init__(device=inner.device, batch_size=inner.batch_size)
        self.observation_spec = inner.observation_spec.clone()
        self.action_spec = inner.action_spec.clone()
        self.reward_spec = inner.reward_spec.clone()
        self.full_done_spec = inner.full_done_spec.clone()

    @property
    def wind(self) -> torch.Tensor:
        return self.inner.wind

    def _reset(self, tensordict: TensorDictBase | None, **options: Any) -> TensorDictBase:
        return self.inner._reset(tensordict, **options)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.inner._step(tensordict)

    def _set_seed(self, seed: int | None) -> None:
        self.inner._set_seed(seed)


def collect(
    memory: Any = SHMModule, seed: int = 0, make_env: Any = None, **options: Any
) -> list[TensorDict]:
    torch.manual_seed(1)
    policy = make_operator(memory).get_policy_operator()
    options = {"num_envs": 4, "rollout_length": 10, "total_frames": 120} | options
    rows = RolloutCollector(
        make_env or partial(WindEnv, max_steps=15), policy, seed=seed, **options
    )
    try:
        return list(rows)
    finally:
        rows.close()


@pytest.mark.parametrize("memory", MEMORIES)
def test_rows(memory: str) -> None:
    batches = collect(MEMORIES[memory])
    assert len(batches) == 3
    for batch in batches:
        assert batch.shape == (4, 10)
        assert batch.names == [None, "time"]
        assert {"observation", "action", "action_log_prob", "is_init"} <= set(batch.keys())
    first, second, _ = batches
    # episodes go on in the next row
    assert torch.equal(second["observation"][:, 0], first["next", "observation"][:, -1])
    assert not second["is_init"][:, 0].any()
    # and end where they end
    assert second["next", "done"].squeeze(-1).nonzero()[:, 1].tolist() == [4] * 4
    assert second["is_init"].squeeze(-1).nonzero()[:, 1].tolist() == [5] * 4
    # the sum of rewards of the running episode
    reward, total = second["next", "reward"], second["next", "episode_reward"]
    torch.testing.assert_close(total[:, 5:], reward[:, 5:].cumsum(1))


@pytest.mark.parametrize(
    ("total_frames", "batches"), [(1, 1), (39, 1), (40, 1), (41, 2), (80, 2), (81, 3)]
)
def test_total_is_rounded_up_to_whole_batches(total_frames: int, batches: int) -> None:
    policy = make_operator().get_policy_operator()
    rows = RolloutCollector(
        WindEnv, policy, num_envs=4, rollout_length=10, total_frames=total_frames
    )
    assert (rows.num_batches, rows.frames_per_batch) == (batches, 40)
    assert sum(1 for _ in rows) == batches
    rows.close()


def test_seeds() -> None:
    first, same, other = (collect(seed=seed) for seed in (0, 0, 1))
    for a, b in zip(first, same, strict=True):
        assert torch.equal(a["observation"], b["observation"])
        assert torch.equal(a["theta_index"], b["theta_index"])
    assert not torch.equal(first[-1]["observation"], other[-1]["observation"])


def test_the_environment_gets_the_device() -> None:
    made: list[dict[str, Any]] = []

    def make_env(**options: Any) -> WindEnv:
        made.append(options)
        return WindEnv(**options)

    collect(make_env=make_env, device="cpu")
    collect(make_env=make_env)
    assert made == [{"num_envs": 4, "device": "cpu"}, {"num_envs": 4}]


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend='foo'.*'single', 'multi_sync'"):
        collect(backend="foo")


@pytest.mark.parametrize("num_workers", [0, -1, 3, 8])
def test_workers_share_the_environments_evenly(num_workers: int) -> None:
    with pytest.raises(ValueError, match=f"num_workers={num_workers} must divide num_envs=4"):
        collect(backend="multi_sync", num_workers=num_workers)
    assert multiprocessing.active_children() == []


def test_errors_of_this_process_are_shown_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError, match="the wind has stopped"):
        collect(make_env=partial(Failing, fail_at=12))


def test_workers(capfd: pytest.CaptureFixture[str]) -> None:
    """One life of two workers, which start in seconds: rows, new parameters, failure, the end."""
    operator = make_operator()
    policy = operator.get_policy_operator()
    with time_limit(120):
        rows = RolloutCollector(
            partial(Failing, max_steps=15, fail_at=25), policy, num_envs=4, rollout_length=10,
            total_frames=200, backend="multi_sync", device="cpu",
        )  # fmt: skip
        try:
            assert rows.num_batches == 5
            assert torch.get_num_threads() == 1
            batches = iter(rows)
            first = next(batches)
            assert first.shape == (4, 10)
            assert first.names == [None, "time"]
            assert first["is_init"][:, 0].all()
            # every environment of every worker is one of its own
            assert len(first["observation"][:, -1, 0].unique()) == 4

            with torch.no_grad():
                action_head: Any = operator.get_policy_head()
                for name, value in action_head.named_parameters():
                    value.fill_(3.0 if name.endswith("layers.4.bias") else 0.0)
            rows.update_policy()
            second = next(batches)
            assert (second["loc"] == 3).all()
            assert (second["scale"] == 1).all()
            assert torch.equal(second["observation"][:, 0], first["next", "observation"][:, -1])

            with pytest.raises(RuntimeError, match="process failed"):
                next(batches)
        finally:
            rows.close()
    assert multiprocessing.active_children() == []
    assert torch.get_num_threads() == 1
    assert "ZeroDivisionError: the wind has stopped" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_repeat() -> None:
    first, same = (collect(backend="multi_sync") for _ in range(2))
    for a, b in zip(first, same, strict=True):
        assert torch.equal(a["observation"], b["observation"])
        assert torch.equal(a["theta_index"], b["theta_index"])


def test_seed_decides_the_first_episodes() -> None:
    def first_winds(seed: int, torch_seed: int) -> torch.Tensor:
        torch.manual_seed(torch_seed)
        envs: list[WindEnv] = []

        def make_env(num_envs: int) -> WindEnv:
            envs.append(WindEnv(num_envs))
            return envs[-1]

        operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=["observation"])
        policy = operator.get_policy_operator()
        RolloutCollector(make_env, policy, num_envs=4, rollout_length=5, total_frames=20, seed=seed)
        return envs[0].wind

    assert torch.equal(first_winds(0, 1), first_winds(0, 2))
    assert not torch.equal(first_winds(0, 1), first_winds(1, 1))


class TestState:
    """Collection that goes on from a saved state is collection that never stopped."""

    def rows(
        self, make_env: Any = None, memory: Any = SHMModule, **options: Any
    ) -> RolloutCollector:
        torch.manual_seed(1)
        policy = make_operator(memory).get_policy_operator()
        options = {"num_envs": 4, "rollout_length": 10, "total_frames": 240, "seed": 3} | options
        return RolloutCollector(make_env or partial(WindEnv, max_steps=15), policy, **options)

    def check(self, batches: list[TensorDict], others: list[TensorDict]) -> None:
        assert len(batches) == len(others)
        for one, other in zip(batches, others, strict=True):
            # numbers of rollouts, and the clock of an object
            names = (("collector", "traj_ids"), "memory_lean_index")
            one, other = (batch.exclude(*names) for batch in (one, other))
            assert set(one.keys(True, True)) == set(other.keys(True, True))
            for key in one.keys(True, True):
                assert torch.equal(one[key], other[key]), key

    @pytest.mark.parametrize("memory", MEMORIES)
    def test_goes_on(self, memory: str) -> None:
        first = self.rows(memory=MEMORIES[memory])
        batches = iter(first)
        for _ in range(2):
            next(batches)
        # of which nothing may change while the first one goes on
        state, generator = copy.deepcopy(first.state_dict()), torch.get_rng_state()
        expected = list(batches)
        second = self.rows(memory=MEMORIES[memory])
        next(iter(second))
        second.load_state_dict(state)
        torch.set_rng_state(generator)
        self.check(list(second), expected)
        assert len(expected) == 4
        # the second row of an episode, so a memory and a sum of rewards were carried
        assert not expected[0]["is_init"][:, 0].any()

    def test_holds_data_only(self, tmp_path: Path) -> None:
        rows = self.rows()
        next(iter(rows))
        torch.save(rows.state_dict(), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        # the policy is saved by whoever trains it
        assert "policy_state_dict" not in str(loaded.keys())
        second = self.rows()
        second.load_state_dict(loaded)
        assert sum(1 for _ in second) == 5

    def test_acts_with_the_parameters_of_now(self) -> None:
        first = self.rows()
        next(iter(first))
        state = first.state_dict()
        second = self.rows()
        with torch.no_grad():
            for name, value in second._policy.named_parameters():
                if "loc" in name or name.endswith("bias"):
                    value.fill_(2.0)
        before = [value.clone() for value in second._policy.parameters()]
        second.load_state_dict(state)
        assert all(
            torch.equal(one, other)
            for one, other in zip(second._policy.parameters(), before, strict=True)
        )

    def test_another_number_of_environments(self) -> None:
        first = self.rows()
        next(iter(first))
        with pytest.raises(ValueError, match=r"is of 4 environments, this is 2; build it with"):
            self.rows(num_envs=2).load_state_dict(first.state_dict())

    def test_episodes_in_python_start_anew(self) -> None:
        """Not with the first ones again, and the count of frames goes on."""
        first = self.rows(partial(Opaque, max_steps=15))
        winds = first._collector.env.base_env.wind
        next(iter(first))
        second = self.rows(partial(Opaque, max_steps=15))
        assert torch.equal(second._collector.env.base_env.wind, winds)
        second.load_state_dict(first.state_dict())
        assert not torch.equal(second._collector.env.base_env.wind, winds)
        batches = list(second)
        assert len(batches) == 5
        assert batches[0]["is_init"][:, 0].all()

    @pytest.mark.slow
    def test_workers(self) -> None:
        options = {"backend": "multi_sync", "device": "cpu"}
        with time_limit(200):
            first = self.rows(**options)
            batches = iter(first)
            for _ in range(2):
                next(batches)
            state = copy.deepcopy(first.state_dict())
            expected = list(batches)
            first.close()
            second = self.rows(**options)
            second.load_state_dict(state)
            found = list(second)
            second.close()
        self.check(found, expected)
        assert multiprocessing.active_children() == []


def test_a_bad_reward_does_not_stay_in_the_sum() -> None:
    class Bad(WindEnv):
        def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
            data = super()._step(tensordict)
            if self.step_count_of_mine == 2:
                data["reward"] = torch.full_like(data["reward"], torch.inf)
            self.step_count_of_mine += 1
            return data

        step_count_of_mine = 0

    (batch,) = collect(make_env=partial(Bad, goal_radius=0.9), total_frames=40)
    reward = batch["next", "reward"]
    assert bool(reward[:, 2].isinf().all())
    total = reward.nan_to_num(0, 0, 0).cumsum(1)
    torch.testing.assert_close(batch["next", "episode_reward"], total)


def test_the_signals_of_this_process_stay() -> None:
    """Collecting here is no worker, even in a process that somebody else has started."""
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        assert multiprocessing.parent_process() is not None
        collect(total_frames=40)
        assert signal.getsignal(signal.SIGINT) == before

    with Child(run) as child:
        assert child.wait() == 0
