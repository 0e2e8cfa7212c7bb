"""Whole batches of sequences, from this process or from workers."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch.testing import assert_close
from torchrl.envs import EnvBase, StepCounter, TransformedEnv
from torchrl.modules import set_recurrent_mode

from tests._processes import Child
from tests.training._helpers import MEMORIES, make_operator, time_limit
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.training import RolloutCollector, ray_workers


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
    """Hides that its state is tensors, as environments of other packages do."""

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.__dict__["inner"] = inner = WindEnv(num_envs, **options)
        super().__init__(device=inner.device, batch_size=inner.batch_size)
        for name in ("observation_spec", "action_spec", "reward_spec", "full_done_spec"):
            setattr(self, name, getattr(inner, name).clone())

    @property
    def wind(self) -> torch.Tensor:
        return self.inner.wind

    def _reset(self, tensordict: TensorDictBase | None, **options: Any) -> TensorDictBase:
        return self.inner._reset(tensordict, **options)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.inner._step(tensordict)

    def _set_seed(self, seed: int | None) -> None:
        self.inner._set_seed(seed)


def make_collector(
    make_env: Any = None, memory: Any = SHMModule, **options: Any
) -> RolloutCollector:
    torch.manual_seed(1)
    policy = make_operator(memory).get_policy_operator()
    options = {"num_envs": 4, "rollout_length": 10, "total_frames": 120, "seed": 3} | options
    return RolloutCollector(make_env or partial(WindEnv, max_steps=15), policy, **options)


def collect(*args: Any, **options: Any) -> list[TensorDictBase]:
    collector = make_collector(*args, **options)
    try:
        return list(collector)
    finally:
        collector.close()


def check_same(batches: list[TensorDictBase], others: list[TensorDictBase]) -> None:
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        # numbers of episodes, and of the object that ran them
        index = ("memory_lean_index", ("next", "memory_lean_index"))
        names = (("collector", "traj_ids"), *index)
        one, other = (batch.exclude(*names) for batch in (one, other))
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        for key in one.keys(True, True):
            assert torch.equal(one[key], other[key]), key


def returns(make_env: Any, **options: Any) -> torch.Tensor:
    """Of whole episodes, from five seeds; every batch replays its log-probabilities."""
    found: list[torch.Tensor] = []
    for seed in range(5):
        policy = make_operator().get_policy_operator()
        sizes = {"num_envs": 32, "rollout_length": 15, "total_frames": 1440}
        collector = RolloutCollector(make_env, policy, seed=seed, **sizes, **options)
        try:
            for batch in collector:
                found.append(batch["next", "episode_reward"][batch["next", "done"]])
                acted = batch["action_log_prob"].clone()
                with torch.no_grad(), set_recurrent_mode(True):
                    again = policy.get_dist(batch).log_prob(batch["action"])
                assert_close(acted, again, rtol=2e-5, atol=2e-5)
        finally:
            collector.close()
    return torch.cat(found)


def rank_test(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mann and Whitney's U in standard deviations: positive where the first is larger."""
    larger = (one[:, None] > other).double() + 0.5 * (one[:, None] == other).double()
    size, rows = larger.numel(), len(one) + len(other)
    return float((larger.sum() - size / 2) / (size * (rows + 1) / 12) ** 0.5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_batches(memory: str) -> None:
    batches = collect(memory=MEMORIES[memory])
    assert len(batches) == 3
    for batch in batches:
        assert batch.shape == (4, 10)
        assert batch.names == [None, "time"]
        assert {"observation", "action", "action_log_prob", "is_init"} <= set(batch.keys())
    first, second, _ = batches
    # episodes go on in the next batch
    assert torch.equal(second["observation"][:, 0], first["next", "observation"][:, -1])
    assert not second["is_init"][:, 0].any()
    # and end where they end
    assert second["next", "done"].squeeze(-1).nonzero()[:, 1].tolist() == [4] * 4
    assert second["is_init"].squeeze(-1).nonzero()[:, 1].tolist() == [5] * 4
    # the sum of rewards of the running episode
    reward, total = second["next", "reward"], second["next", "episode_reward"]
    torch.testing.assert_close(total[:, 5:], reward[:, 5:].cumsum(1))


@pytest.mark.parametrize(("total_frames", "batches"), [(1, 1), (40, 1), (41, 2), (80, 2)])
def test_total_is_rounded_up_to_whole_batches(total_frames: int, batches: int) -> None:
    collector = make_collector(total_frames=total_frames)
    assert (collector.num_batches, collector.frames_per_batch) == (batches, 40)
    assert sum(1 for _ in collector) == batches


def test_seed_decides_everything() -> None:
    """From the first episodes on, whatever torch's generator was before."""

    def start(drawn: int = 1, **options: Any) -> torch.Tensor:
        envs: list[WindEnv] = []

        def remember(**env_options: Any) -> WindEnv:
            torch.rand(drawn)
            envs.append(WindEnv(**env_options))
            return envs[-1]

        make_collector(remember, **options)
        return envs[-1].wind

    assert torch.equal(start(), start(drawn=5))
    assert not torch.equal(start(), start(seed=4))
    first, same, other = (collect(seed=seed) for seed in (3, 3, 4))
    check_same(first, same)
    assert not torch.equal(first[-1]["observation"], other[-1]["observation"])


def test_the_environment_gets_the_device() -> None:
    made: list[dict[str, Any]] = []

    def make_env(**options: Any) -> WindEnv:
        made.append(options)
        return WindEnv(**options)

    make_collector(make_env, device="cpu")
    make_collector(make_env)
    assert made == [{"num_envs": 4, "device": "cpu"}, {"num_envs": 4}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "foo"}, "backend='foo'.*'single', 'multi_sync', 'multi_async', 'ray'"),
        ({"backend": "multi_sync", "num_workers": 0}, "num_workers=0 must divide num_envs=4"),
        ({"backend": "multi_sync", "num_workers": 3}, "num_workers=3 must divide num_envs=4"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_collector(**options)
    assert multiprocessing.active_children() == []


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda _: None)
    for backend in ("ray", "ray_async"):
        with pytest.raises(ModuleNotFoundError, match=r"^collector=ray needs .* -e \"\.\[ray\]\"$"):
            make_collector(backend=backend)


def test_errors_of_this_process_are_shown_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError, match="the wind has stopped"):
        collect(partial(Failing, fail_at=12))


def test_a_bad_reward_does_not_stay_in_the_sum() -> None:
    class Bad(WindEnv):
        steps = 0

        def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
            data = super()._step(tensordict)
            if self.steps == 2:
                data["reward"] = torch.full_like(data["reward"], torch.inf)
            self.steps += 1
            return data

    (batch,) = collect(partial(Bad, goal_radius=0.9), total_frames=40)
    reward = batch["next", "reward"]
    assert bool(reward[:, 2].isinf().all())
    total = reward.nan_to_num(0, 0, 0).cumsum(1)
    torch.testing.assert_close(batch["next", "episode_reward"], total)


def test_the_signals_of_this_process_stay() -> None:
    """Only worker processes ignore signals, not every process that somebody else has started."""
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        assert multiprocessing.parent_process() is not None
        collect(total_frames=40)
        assert signal.getsignal(signal.SIGINT) == before

    with Child(run) as child:
        assert child.wait() == 0


class TestWorkers:
    @pytest.fixture(autouse=True)
    def _threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a process that has loaded TorchRL before it set its number of threads."""
        monkeypatch.setattr("torchrl._THREAD_POOL_INIT", 4)

    @pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_life(
        self, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest, start: str
    ) -> None:
        """Two workers: batches, new parameters, failure, the end."""
        if start == "fork":
            request.getfixturevalue("forked_workers")
        operator = make_operator()
        policy = operator.get_policy_operator()
        with time_limit(120):
            collector = RolloutCollector(
                partial(Failing, max_steps=15, fail_at=25), policy, num_envs=4, rollout_length=10,
                total_frames=200, backend="multi_sync", device="cpu",
            )  # fmt: skip
            try:
                assert collector.num_batches == 5
                assert torch.get_num_threads() == 1
                batches = iter(collector)
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
                collector.update_policy()
                second = next(batches)
                assert (second["loc"] == 3).all()
                assert (second["scale"] == 1).all()
                assert torch.equal(second["observation"][:, 0], first["next", "observation"][:, -1])

                with pytest.raises(RuntimeError, match="process failed"):
                    next(batches)
                assert torch.get_num_threads() == 1
            finally:
                collector.close()
        assert multiprocessing.active_children() == []
        assert torch.get_num_threads() == 1
        assert "ZeroDivisionError: the wind has stopped" in capfd.readouterr().err

    @pytest.mark.usefixtures("forked_workers")
    def test_those_that_do_not_wait(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Batches of one worker each, with the gates of then; new parameters come to all."""
        operator = make_operator()
        policy = operator.get_policy_operator()
        options: dict[str, Any] = {
            "num_envs": 4, "rollout_length": 10, "backend": "multi_async", "device": "cpu",
        }  # fmt: skip
        make = partial(WindEnv, max_steps=15)
        with time_limit(120):
            collector = RolloutCollector(make, policy, total_frames=400, **options)
            resumed = None
            try:
                assert (collector.frames_per_batch, collector.num_batches) == (20, 20)
                batches = iter(collector)
                seen = [next(batches) for _ in range(4)]
                for batch in seen:
                    assert batch.shape == (2, 10)
                    acted = batch["action_log_prob"].clone()
                    with torch.no_grad(), set_recurrent_mode(True):
                        again = policy.get_dist(batch).log_prob(batch["action"])
                    torch.testing.assert_close(acted, again, rtol=2e-5, atol=2e-5)
                # two processes, with environments of their own
                firsts = [x for x in seen if x["is_init"][:, 0].all()]
                assert len(firsts) == 2
                assert not torch.equal(firsts[0]["observation"], firsts[1]["observation"])

                with torch.no_grad():
                    action_head: Any = operator.get_policy_head()
                    for name, value in action_head.named_parameters():
                        value.fill_(3.0 if name.endswith("layers.4.bias") else 0.0)
                collector.update_policy()
                # what was under way is of the old policy
                later = [next(batches) for _ in range(8)]
                assert (later[-1]["loc"] == 3).all()

                state = collector.state_dict()
                assert state == {"frames": 240}
                resumed = RolloutCollector(make, policy, total_frames=400, **options)
                resumed.load_state_dict(state)
                rest = list(resumed)
                assert sum(batch.numel() for batch in rest) == 160
                assert torch.get_num_threads() == 1
                assert (rest[0]["loc"] == 3).all()
                assert rest[0]["is_init"][:, 0].all()

                inner: Any = collector._collector
                worker = inner.procs[0]
                worker.kill()
                worker.join(20)
                with pytest.raises(RuntimeError, match="has died"):
                    collector.update_policy()
            finally:
                collector.close()
                if resumed is not None:
                    resumed.close()
        assert multiprocessing.active_children() == []
        assert torch.get_num_threads() == 1
        assert "transform container" not in capfd.readouterr().err

    @pytest.mark.slow
    @pytest.mark.usefixtures("forked_workers")
    def test_returns_are_of_one_distribution(self) -> None:
        """What two workers earn is what one process earns, which environments of others are not."""
        make = partial(WindEnv, max_steps=15, goal_radius=0.9)
        one, two = returns(make), returns(make, backend="multi_sync", device="cpu")
        assert one.std() > 0
        assert len(one.unique()) > 8
        # one pair of samples in 100 differs as much by chance
        assert abs(rank_test(one, two)) < 2.6
        assert rank_test(one, returns(partial(make, goal_radius=0.7))) > 2.6

    @pytest.mark.slow
    def test_repeat(self) -> None:
        check_same(*(collect(backend="multi_sync") for _ in range(2)))


class TestState:
    """Collection that goes on from a saved state is collection that never stopped."""

    @pytest.mark.parametrize(
        "options",
        [
            *({"memory": memory} for memory in MEMORIES.values()),
            pytest.param({"backend": "multi_sync", "device": "cpu"}, marks=pytest.mark.slow),
        ],
        ids=[*MEMORIES, "workers"],
    )
    def test_goes_on(self, options: dict[str, Any]) -> None:
        first, second = make_collector(**options), make_collector(**options)
        batches = iter(first)
        for _ in range(2):
            next(batches)
        # nothing of it may change while the first one goes on
        state, generator = copy.deepcopy(first.state_dict()), torch.get_rng_state()
        (expected,) = batches
        second.load_state_dict(state)
        torch.set_rng_state(generator)
        check_same(list(second), [expected])
        # a memory and a sum of rewards were carried
        assert not expected["is_init"][:, 0].any()
        for collector in (first, second):
            collector.close()
        assert multiprocessing.active_children() == []

    def test_holds_data_only(self, tmp_path: Path) -> None:
        collector = make_collector()
        next(iter(collector))
        torch.save(collector.state_dict(), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        # the policy is saved by whoever trains it
        assert "policy_state_dict" not in str(loaded.keys())
        second = make_collector()
        second.load_state_dict(loaded)
        assert sum(1 for _ in second) == 2

    def test_is_sent_where_it_is_a_copy_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        collector: Any = make_collector()
        sent: list[None] = []
        monkeypatch.setattr(
            collector._collector, "update_policy_weights_", lambda: sent.append(None)
        )
        collector.update_policy()
        assert collector._collector.policy is collector._policy
        assert not sent
        # as on another device
        collector._shares_policy = False
        collector.update_policy()
        assert sent == [None]
        collector.close()

    def test_acts_with_the_present_parameters(self) -> None:
        first, second = make_collector(), make_collector()
        next(iter(first))
        with torch.no_grad():
            for name, value in second._policy.named_parameters():
                value.fill_(2.0 if name.endswith("layers.4.bias") else 0.0)
        second.load_state_dict(first.state_dict())
        assert (next(iter(second))["loc"] == 2).all()

    def test_another_number_of_environments(self) -> None:
        first = make_collector()
        next(iter(first))
        with pytest.raises(ValueError, match=r"is of 4 environments, this is 2; build it with"):
            make_collector(num_envs=2).load_state_dict(first.state_dict())

    def test_episodes_of_other_packages_start_anew(self) -> None:
        """With others than the first ones, and the count of frames goes on."""
        first, second = (make_collector(partial(Opaque, max_steps=15)) for _ in range(2))
        winds = [x._collector.env.base_env.wind for x in (first, second)]
        assert torch.equal(*winds)
        next(iter(first))
        second.load_state_dict(first.state_dict())
        assert not torch.equal(second._collector.env.base_env.wind, winds[0])
        batches = list(second)
        assert len(batches) == 2
        assert batches[0]["is_init"][:, 0].all()

    def test_with_new_episodes_in_every_batch(self) -> None:
        options = {"reset_each_batch": True, "group_size": 2}
        first, second = make_collector(**options), make_collector(**options)
        batches = iter(first)
        next(batches)
        state, generator = copy.deepcopy(first.state_dict()), torch.get_rng_state()
        expected = list(batches)
        second.load_state_dict(state)
        torch.set_rng_state(generator)
        check_same(list(second), expected)


def winds_of(batch: TensorDictBase) -> torch.Tensor:
    """The winds of the first steps, which are drawn once per episode."""
    moved = batch["next", "observation"][:, 0] - batch["observation"][:, 0]
    return moved - 0.1 * batch["action"][:, 0].clamp(-1, 1)


class TestGroups:
    """Rows that play the same layout, from the first step of a batch."""

    @pytest.mark.parametrize(
        "options",
        [{}, pytest.param({"backend": "multi_sync", "num_workers": 1}, marks=pytest.mark.slow)],
        ids=["here", "worker"],
    )
    def test_every_batch_is_a_new_start(self, options: dict[str, Any]) -> None:
        batches = collect(group_size=2, reset_each_batch=True, **options)
        winds: list[torch.Tensor] = []
        for batch in batches:
            assert batch["is_init"][:, 0].all()
            # the episodes are longer than the batch
            assert not batch["is_init"][:, 1:].any()
            assert not batch["next", "done"].any()
            winds.append(wind := winds_of(batch))
            assert_close(wind[::2], wind[1::2])
            assert (wind[0] - wind[2]).abs().max() > 1e-3
            assert not torch.equal(batch["action"][0], batch["action"][1])
            # rewards are summed anew
            assert torch.equal(batch["episode_reward"][:, 0], torch.zeros(4, 1))
        assert (winds[0] - winds[1]).abs().max() > 1e-3

    @pytest.mark.filterwarnings("ignore:Nested TransformedEnvs")
    def test_below_transforms(self) -> None:
        """Where a task comes with some of its own."""

        def make_env(**options: Any) -> EnvBase:
            return TransformedEnv(WindEnv(**options), StepCounter())

        wind = winds_of(collect(make_env, group_size=4)[0])
        assert_close(wind, wind[:1].expand(4, 2))

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match=r"^group_size=3 must divide num_envs=4$"):
            collect(group_size=3)
        needs = (
            "^group_size=2 needs a task that draws .*Opaque does not; use a task of torchrl_shm$"
        )
        message = "^group_size=4 must divide the 2 environments of each of 2 workers, .*$"
        for options in ({}, {"backend": "multi_sync", "num_workers": 1}):
            with pytest.raises(ValueError, match=needs):
                collect(Opaque, group_size=2, **options)
        with pytest.raises(ValueError, match=message):
            collect(group_size=4, backend="multi_sync")
        assert multiprocessing.active_children() == []
