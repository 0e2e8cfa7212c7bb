"""Wind: the original's numbers to the last bit, and the manners of a batched environment."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, InitTracker, RewardSum, TransformedEnv, check_env_specs

from torchrl_shm.envs import WindEnv

# eight episodes of the original, actions before clipping
RECORDED = Path(__file__).parents[1] / "fixtures" / "wind_shm.npz"
HARD: dict[str, Any] = {"num_train_tasks": 10, "num_test_tasks": 190}
ORIGINAL: dict[str, Any] = {
    "num_tasks": 60,
    "num_train_tasks": 40,
    "num_test_tasks": 20,
    "max_wind": 0.08,
    "goal_radius": 0.03,
    "max_steps": 75,
}
PRESETS = {"wind": {}, "wind_hard": HARD, "wind_original": ORIGINAL}
TOO_STRONG = [17, 27, 50, 56, 60, 75, 108, 134, 136, 169, 175]

Policy = Callable[[WindEnv, Tensor, Tensor | None], Tensor]


def inject(env: WindEnv, wind: Tensor, reset: Tensor | None = None) -> TensorDictBase:
    entries = {"wind": wind} if reset is None else {"wind": wind, "_reset": reset}
    return env.reset(TensorDict(entries, batch_size=env.batch_size), set_state=True)


def step(env: WindEnv, action: Tensor) -> TensorDictBase:
    return env.step(TensorDict({"action": action}, batch_size=env.batch_size))["next"]


def play(env: WindEnv, policy: Policy) -> tuple[Tensor, Tensor]:
    """Return and success of one episode; the policy is told the wind that it could infer."""
    observation, inferred = env.reset()["observation"], None
    total = torch.zeros(env.batch_size)
    for _ in range(env.max_steps):
        action = policy(env, observation.double(), inferred).float()
        data = step(env, action)
        if inferred is None:
            inferred = data["observation"].double() - 0.1 * data["previous_action"].double()
        observation = data["observation"]
        total += data["reward"][:, 0]
    return total, data["success"][:, 0].float()


def oracle(env: WindEnv, observation: Tensor, inferred: Tensor | None) -> Tensor:
    return (env.goal - observation - env.wind) / 0.1


def adaptive(env: WindEnv, observation: Tensor, inferred: Tensor | None) -> Tensor:
    """First towards the goal, then as the oracle with the wind that the first step showed."""
    if inferred is None:
        return env.goal.expand_as(observation)
    return (env.goal - observation - inferred) / 0.1


class TestOriginal:
    @pytest.fixture
    def recorded(self) -> dict[str, Tensor]:
        with np.load(RECORDED) as data:
            return {name: torch.from_numpy(data[name]) for name in data}

    def test_steps_are_exact(self, recorded: dict[str, Tensor]) -> None:
        env = WindEnv(len(recorded["wind"]))
        data = inject(env, recorded["wind"])
        assert torch.equal(data["observation"], recorded["observation"][:, 0].float())
        for t in range(env.max_steps):
            action = recorded["action"][:, t]
            data = step(env, action)
            assert torch.equal(env._running()["position"], recorded["observation"][:, t + 1])
            assert torch.equal(data["observation"], recorded["observation"][:, t + 1].float())
            assert torch.equal(data["previous_action"], action.clamp(-1, 1).float())
            assert torch.equal(data["reward"][:, 0], recorded["reward"][:, t].float())
            assert torch.equal(data["done"][:, 0], recorded["done"][:, t])
            ever = recorded["reward"][:, : t + 1].any(-1)
            assert torch.equal(data["success"][:, 0], ever)

    def test_recording_covers_both_rewards_and_clipping(self, recorded: dict[str, Tensor]) -> None:
        assert 0 < recorded["reward"].sum() < recorded["reward"].numel()
        assert recorded["action"].abs().max() > 1

    def test_float32_actions_move_as_in_the_original(self) -> None:
        """NumPy computes in the dtype of the action, with bounds in float32, and clips twice."""
        action = np.random.RandomState(0).uniform(-1.5, 1.5, (1001, 2)).astype(np.float32)
        action[:4] = [[-1, 1], [1, -1], [0, -0.0], [np.nextafter(np.float32(1), 0), 1e-30]]
        high = np.full(2, 0.1, np.float32)
        clipped = np.clip(action, -1, 1)
        move = np.clip(-high + (clipped + 1.0) * 0.5 * (high + high), -high, high)
        assert move.dtype == np.float32

        env = WindEnv(len(action))
        inject(env, torch.zeros(len(action), 2))
        data = step(env, torch.from_numpy(action))
        assert torch.equal(env._running()["position"], torch.from_numpy(move).double())
        assert torch.equal(data["previous_action"], torch.from_numpy(clipped))

    def test_recorded_tasks_are_tasks_of_ours(self, recorded: dict[str, Tensor]) -> None:
        env = WindEnv()
        ids = torch.cat([env.train_ids, env.test_ids])
        winds = torch.cat([env.train_tasks, env.test_tasks])
        for task, wind in zip(recorded["task"], recorded["wind"], strict=True):
            assert torch.equal(winds[ids == task], wind[None])


class TestTasks:
    def test_splits(self) -> None:
        env, hard = WindEnv(), WindEnv(**HARD)
        assert env.train_ids[:10].tolist() == [67, 193, 117, 142, 118, 27, 173, 11, 34, 196]
        assert (len(env.train_ids), len(env.test_ids)) == (50, 150)
        assert sorted([*env.train_ids.tolist(), *env.test_ids.tolist()]) == list(range(200))
        assert torch.equal(hard.train_ids, env.train_ids[:10])
        assert torch.equal(hard.test_ids[-150:], env.test_ids)
        assert torch.equal(hard.test_tasks[-150:], env.test_tasks)
        # training tasks are the first and tests the last, whatever is left between them
        assert torch.equal(WindEnv(num_train_tasks=10).test_ids, env.test_ids)

    def test_first_task(self) -> None:
        env = WindEnv(num_train_tasks=1, num_test_tasks=199)
        first = env.test_tasks[env.test_ids == 0]
        expected = torch.tensor([[-0.047595, -0.068263]], dtype=torch.float64)
        torch.testing.assert_close(first, expected, rtol=0, atol=5e-7)

    def test_tasks_that_no_policy_can_solve(self) -> None:
        env = WindEnv()
        ids = torch.cat([env.train_ids, env.test_ids])
        winds = torch.cat([env.train_tasks, env.test_tasks])
        assert sorted(ids[winds[:, 1] < -0.0901].tolist()) == TOO_STRONG
        assert env.train_ids[env.train_tasks[:, 1] < -0.0901].tolist() == [27]
        assert int((env.test_tasks[:, 1] < -0.0901).sum()) == 10

    @pytest.mark.parametrize(
        ("preset", "policy", "expected_return", "expected_success"),
        [
            ("wind", oracle, 81.66, 0.933),
            ("wind", adaptive, 79.56, 0.927),
            ("wind_hard", oracle, 82.06, 0.947),
            ("wind_hard", adaptive, 80.40, 0.942),
            ("wind_original", oracle, 63.95, 1.0),
        ],
    )
    def test_bounds(
        self, preset: str, policy: Policy, expected_return: float, expected_success: float
    ) -> None:
        returns, success = play(WindEnv(split="test", **PRESETS[preset]), policy)
        assert returns.mean().item() == pytest.approx(expected_return, abs=5.1e-3)
        assert success.mean().item() == pytest.approx(expected_success, abs=5.1e-4)

    def test_oracle_fails_on_the_unsolvable_tasks_only(self) -> None:
        env = WindEnv(split="test")
        _, success = play(env, oracle)
        assert set(env.test_ids[success == 0].tolist()) == set(TOO_STRONG) - {27}

    def test_test_split_plays_its_tasks_in_order(self) -> None:
        env = WindEnv(split="test")
        assert env.batch_size == (150,)
        for _ in range(2):
            env.reset()
            assert torch.equal(env.wind, env.test_tasks)

    def test_train_split_draws_every_task_and_no_other(self) -> None:
        env = WindEnv(5_000, seed=0)
        env.reset()
        same = (env.wind[:, None] == env.train_tasks).all(-1)
        assert (same.sum(-1) == 1).all()
        # 100 are expected of each; six standard deviations are 60
        assert (same.sum(0) - 100).abs().max() < 60


class TestContract:
    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("preset", PRESETS)
    def test_specs(self, preset: str, split: Any) -> None:
        env = WindEnv(split=split, **PRESETS[preset])
        check_env_specs(env)
        assert env.rollout(1_000).shape == (*env.batch_size, env.max_steps)

    def test_defaults(self) -> None:
        env = WindEnv()
        assert env.batch_size == (64,)
        assert env.goal.tolist() == [0, 1]
        assert env.action_spec.shape == (64, 2)
        assert env.observation_spec["observation"].dtype == torch.float32

    def test_reset_starts_at_the_origin(self) -> None:
        env = WindEnv(3)
        env.rollout(5, break_when_any_done=False)
        data = env.reset()
        for name in ("observation", "previous_action", "success", "done", "truncated"):
            assert not data[name].any()

    def test_episodes_are_truncated_not_terminated(self) -> None:
        env = WindEnv(3, max_steps=4)
        data = env.rollout(4)["next"]
        for name in ("done", "truncated"):
            assert data[name][:, :, 0].tolist() == [[False, False, False, True]] * 3
        assert not data["terminated"].any()

    def test_goal_does_not_end_the_episode_and_success_stays(self) -> None:
        env = WindEnv(1, max_steps=30)
        inject(env, torch.zeros(1, 2))
        up, down = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])
        data = [step(env, action) for action in [up] * 10 + [down] * 5]
        assert [x["reward"].item() for x in data] == [0] * 9 + [1] + [0] * 5
        assert [x["success"].item() for x in data] == [False] * 9 + [True] * 6
        assert not any(x["done"].item() for x in data)

    def test_actions_out_of_bounds_are_clipped(self) -> None:
        env = WindEnv(2)
        inject(env, torch.zeros(2, 2))
        data = step(env, torch.tensor([[5.0, -0.5], [-3.0, 1.0]]))
        torch.testing.assert_close(data["observation"], torch.tensor([[0.1, -0.05], [-0.1, 0.1]]))
        assert data["previous_action"].tolist() == [[1, -0.5], [-1, 1]]

    def test_policy_gets_no_gradient_through_the_environment(self) -> None:
        env = WindEnv(2)
        env.reset()
        action = torch.zeros(2, 2, requires_grad=True)
        assert not any(entry.requires_grad for entry in step(env, action).values())

    def test_step_before_reset_says_so(self) -> None:
        with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
            step(WindEnv(2), torch.zeros(2, 2))

    def test_collector(self) -> None:
        env = TransformedEnv(WindEnv(4, seed=0, max_steps=7))
        env.append_transform(InitTracker()).append_transform(RewardSum())
        collector = Collector(env, None, frames_per_batch=40, total_frames=80)
        batches = list(collector)
        collector.shutdown()
        assert [batch.shape for batch in batches] == [(4, 10)] * 2
        data = torch.cat(batches, dim=1)
        for t in range(20):
            start = t % 7 == 0
            assert (data["is_init"][:, t] == start).all()
            assert (data["next", "done"][:, t] == (t % 7 == 6)).all()
            assert not (start and data["observation"][:, t].any())


class TestPartialReset:
    RESET = torch.tensor([True, False, True, False])

    def test_other_rows_are_untouched(self) -> None:
        env = WindEnv(4, seed=0)
        # the upper two rows reach the goal, so that there is a success to keep and one to lose
        env.reset()
        inject(env, torch.tensor([[0.0, 0.1], [0.0, 0.1], [0.01, 0.02], [-0.01, 0.02]]))
        for _ in range(10):
            data = step(env, torch.zeros(4, 2))
        before, wind = data.clone(), env.wind.clone()
        assert before["success"][:, 0].tolist() == [True, True, False, False]

        after = env.reset(data.exclude("reward").set("_reset", self.RESET[:, None]))
        kept = ~self.RESET
        assert torch.equal(env.wind[kept], wind[kept])
        assert (env.wind[self.RESET] != wind[self.RESET]).any(-1).all()
        for name in ("observation", "previous_action", "success", "done", "truncated"):
            assert torch.equal(after[name][kept], before[name][kept])
            assert not after[name][self.RESET].any()

        # steps count on where they were
        steps = []
        for _ in range(env.max_steps):
            steps.append(step(env, torch.zeros(4, 2))["done"][:, 0])
        first_done = torch.stack(steps).int().argmax(0) + 1
        assert first_done.tolist() == [100, 90, 100, 90]

    def test_mask_alone_returns_the_running_rows(self) -> None:
        env = WindEnv(4)
        env.reset()
        before = step(env, torch.rand(4, 2))
        done = {"_reset": self.RESET, "done": before["done"], "truncated": before["truncated"]}
        after = env._reset(TensorDict(done, batch_size=[4]))
        for name in ("observation", "previous_action", "success"):
            assert torch.equal(after[name][~self.RESET], before[name][~self.RESET])

    def test_stored_data_are_not_written_to(self) -> None:
        env = WindEnv(4, max_steps=3)
        data = env.reset()
        stored: list[TensorDictBase] = []
        copies: list[TensorDictBase] = []
        for t in range(8):
            if t == 2:
                data = env.reset(data.set("_reset", self.RESET[:, None]))
            data["action"] = torch.rand(4, 2)
            transition, data = env.step_and_maybe_reset(data)
            stored.append(transition)
            copies.append(transition.clone())
        for transition, copied in zip(stored, copies, strict=True):
            assert (transition == copied).all()

    def test_injection_reaches_the_chosen_rows_only(self) -> None:
        env = WindEnv(4)
        env.reset()
        wind = env.wind
        inject(env, torch.full((4, 2), 0.05), self.RESET)
        assert (env.wind[self.RESET] == torch.tensor(0.05).double()).all()
        assert torch.equal(env.wind[~self.RESET], wind[~self.RESET])

    def test_rows_that_wait_stay_as_they_are(self) -> None:
        env = WindEnv(4, max_steps=11)
        inject(env, torch.zeros(4, 2))
        for _ in range(10):
            before = step(env, torch.tensor([[0.0, 1.0]]).expand(4, 2))
        assert before["reward"].all()
        # whoever stays in the goal is paid, whoever waits there is not
        action = TensorDict({"action": torch.zeros(4, 2), "_step": self.RESET}, batch_size=[4])
        after = env.step(action)["next"]
        waits = ~self.RESET
        for name in ("observation", "previous_action", "success", "done"):
            assert torch.equal(after[name][waits], before[name][waits])
        assert torch.equal(after["reward"][:, 0], self.RESET.float())
        assert after["done"][self.RESET].all()


class TestInjection:
    def test_lasts_one_episode(self) -> None:
        env = WindEnv(split="test", max_steps=2)
        inject(env, torch.zeros(150, 2))
        assert not env.wind.any()
        env.reset()
        assert torch.equal(env.wind, env.test_tasks)

    def test_below_transforms(self) -> None:
        env = TransformedEnv(WindEnv(2), InitTracker())
        wind = torch.tensor([[0.01, 0.02], [0.03, 0.04]])
        start = TensorDict({"wind": wind}, batch_size=[2])
        with pytest.raises(ValueError, match=r"with env.base_env.reset after env.reset"):
            env.reset(start.copy(), set_state=True)
        data = env.reset()
        again = env.base_env.reset(start, set_state=True)
        assert (again.exclude("wind") == data.exclude("is_init")).all()
        data = env.step(data.set("action", torch.zeros(2, 2)))
        assert torch.equal(data["next", "observation"], wind)

    def test_rollout(self) -> None:
        wind = torch.tensor([[0.01, 0.02], [0.03, 0.04]])
        start = TensorDict({"wind": wind}, batch_size=[2])
        env = WindEnv(2)
        env.rollout(3, tensordict=start, set_state=True)
        assert torch.equal(env.wind, wind.double())

    @pytest.mark.parametrize(
        ("entries", "found"), [({}, "none"), ({"wind": torch.zeros(3, 1)}, r"\(3, 1\)")]
    )
    def test_says_what_is_missing(self, entries: dict[str, Tensor], found: str) -> None:
        start = TensorDict(entries, batch_size=[3])
        with pytest.raises(ValueError, match=rf'"wind" of shape \(3, 2\), got {found}'):
            WindEnv(3).reset(start, set_state=True)


class TestRandomness:
    @staticmethod
    def winds(env: WindEnv) -> Tensor:
        seen = []
        for _ in range(3):
            env.reset()
            seen.append(env.wind)
        return torch.stack(seen)

    def test_seed_decides(self) -> None:
        assert torch.equal(self.winds(WindEnv(9, seed=3)), self.winds(WindEnv(9, seed=3)))
        assert not torch.equal(self.winds(WindEnv(9, seed=3)), self.winds(WindEnv(9, seed=4)))

    def test_set_seed(self) -> None:
        env = WindEnv(9)
        first = [env.set_seed(3), self.winds(env)]
        again = [env.set_seed(3), self.winds(env)]
        assert first[0] == again[0]
        assert torch.equal(first[1], again[1])
        assert torch.equal(first[1], self.winds(WindEnv(9, seed=3)))
        env.set_seed(4)
        assert not torch.equal(first[1], self.winds(env))

    def test_without_a_seed_torch_decides(self) -> None:
        torch.manual_seed(7)
        first, other = WindEnv(9), WindEnv(9)
        torch.manual_seed(7)
        again = WindEnv(9)
        winds = self.winds(first)
        assert torch.equal(winds, self.winds(again))
        assert not torch.equal(winds, self.winds(other))

    def test_global_generators_are_left_alone(self) -> None:
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
        env = WindEnv(4, seed=0)
        env.reset()
        step(env, torch.zeros(4, 2))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state[1])

    def test_seed_does_not_change_the_tasks(self) -> None:
        assert torch.equal(WindEnv(seed=1).train_tasks, WindEnv(seed=2).train_tasks)


def saved(env: WindEnv) -> WindEnv:
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    fresh = WindEnv(5, max_steps=8, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


class TestCopies:
    @pytest.mark.parametrize(
        "duplicate",
        [saved, copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],
        ids=["state_dict", "deepcopy", "pickle"],
    )
    @pytest.mark.parametrize("steps", [None, 0, 5])
    def test_goes_on_as_the_original(
        self, duplicate: Callable[[WindEnv], WindEnv], steps: int | None
    ) -> None:
        env = WindEnv(5, max_steps=8, seed=1)
        if steps is not None:
            env.reset()
            for _ in range(steps):
                step(env, torch.rand(5, 2))
        twin = duplicate(env)
        if steps is None:
            env.reset()
            twin.reset()
        for _ in range(20):
            assert torch.equal(env.wind, twin.wind)
            action = torch.rand(5, 2)
            ours, theirs = step(env, action), step(twin, action)
            assert (ours == theirs).all()
            if ours["done"].any():
                assert (env.reset() == twin.reset()).all()

    def test_saved_state_is_of_the_same_size(self) -> None:
        env = WindEnv(5)
        env.reset()
        with pytest.raises(ValueError, match="of 5 environments, this is 6; build it with num_"):
            WindEnv(6).load_state_dict(env.state_dict())

    def test_to_the_same_device(self) -> None:
        env = WindEnv(5, seed=0)
        env.reset()
        wind = env.wind
        assert env.to("cpu") is env
        assert torch.equal(env.wind, wind)

    def test_to_another_device_moves_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = WindEnv(5, seed=3)
        env.reset()
        # the meta device is everywhere, but has neither specs nor generators
        seeds: list[int] = []
        move = lambda env, device: env.__dict__.update(_device=torch.device(device))  # noqa: E731
        monkeypatch.setattr(EnvBase, "to", move)
        monkeypatch.setattr(WindEnv, "_set_seed", lambda env, seed: seeds.append(seed))
        assert env.to("meta") is env
        assert seeds == [3]
        tensors = [value for value in vars(env).values() if isinstance(value, Tensor)]
        assert {tensor.device.type for tensor in (*tensors, *env._running().values())} == {"meta"}
        start = TensorDict({"action": torch.zeros(5, 2, device="meta")}, batch_size=[5])
        assert {entry.device.type for entry in env._step(start).values()} == {"meta"}

    @pytest.mark.gpu
    def test_cuda(self) -> None:
        """Moves there, steps as on the CPU, and never makes the CPU wait."""
        env, there = WindEnv(5, seed=0), WindEnv(5, seed=0).to("cuda")
        wind = torch.rand(5, 2) * 0.1
        inject(env, wind)
        inject(there, wind.cuda())
        reset = torch.tensor([[True], [False], [True], [False], [True]], device="cuda")
        for _ in range(20):
            action = torch.rand(5, 2) * 3 - 1.5
            ours = step(env, action)
            start = TensorDict({"action": action.cuda()}, batch_size=[5], device="cuda")
            torch.cuda.set_sync_debug_mode("error")
            try:
                theirs = there._step(start)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert (ours == theirs.cpu()).all()
        mask = TensorDict({"_reset": reset}, batch_size=[5], device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            there._reset(mask)
            there._reset(None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check_env_specs(WindEnv(5, device="cuda"))


class Calls(TorchDispatchMode):
    """Names of the operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_a_value() -> None:
    """No operation hands a value to Python or has a result whose shape depends on values."""
    env = WindEnv(4)
    # the CPU checks actions, other devices do not
    env._looks = False
    env.reset()
    waits = torch.tensor([True, False, True, False])
    with Calls() as calls:
        env._step(TensorDict({"action": torch.rand(4, 2)}, batch_size=[4]))
        env._step(TensorDict({"action": torch.rand(4, 2), "_step": waits}, batch_size=[4]))
        env._reset(TensorDict({"_reset": waits}, batch_size=[4]))
        env._reset(None)
    assert "vector_norm" in str(calls.names)
    forbidden = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
    assert not forbidden & set(calls.names)


class TestShaping:
    def test_counts_discs_on_a_logarithmic_scale(self) -> None:
        env = WindEnv(5, shaping_radii=(0.01, 10.0))
        check_env_specs(env)
        # distances 0, 0.01, 0.1, 1 and 20 after a step without action
        position = torch.tensor([1.0, 1.01 - 1e-9, 1.1, 2.0, 21.0], dtype=torch.float64)
        inject(env, torch.stack([torch.zeros(5).double(), position], -1))
        data = step(env, torch.zeros(5, 2))
        expected = torch.tensor([[1.0], [1.0], [2 / 3], [1 / 3], [0.0]])
        torch.testing.assert_close(data["shaping"], expected)
        assert data["reward"][:, 0].tolist() == [1, 1, 0, 0, 0]

    def test_changes_nothing_else(self) -> None:
        plain, shaped = WindEnv(4, seed=0), WindEnv(4, seed=0, shaping_radii=(0.001, 10.0))
        assert (plain.reset() == shaped.reset().exclude("shaping")).all()
        action = torch.rand(4, 2)
        assert (step(plain, action) == step(shaped, action).exclude("shaping")).all()

    def test_tests_never_see_it(self) -> None:
        env = WindEnv(split="test", shaping_radii=(0.001, 10.0))
        assert "shaping" not in env.reset().keys()
        assert "shaping" not in env.observation_spec.keys()


class TestMirror:
    def test_half_of_the_episodes_have_the_opposite_x(self) -> None:
        env = WindEnv(4000, mirror=True, seed=0)
        env.reset()
        tasks = env.train_tasks
        flipped = tasks * torch.tensor([-1.0, 1.0])
        same = (env.wind.unsqueeze(1) == tasks).all(-1)
        mirrored = (env.wind.unsqueeze(1) == flipped).all(-1)
        # every wind is that of one training task, seen directly or in the mirror
        assert torch.equal(same.sum(1) + mirrored.sum(1), torch.ones(4000, dtype=torch.int64))
        assert 0.45 < mirrored.any(1).double().mean() < 0.55
        assert same.any(0).all()
        assert mirrored.any(0).all()

    def test_the_list_of_tasks_stays(self) -> None:
        env = WindEnv(64, mirror=True, seed=0)
        for _ in range(3):
            env.reset()
        assert torch.equal(env.train_tasks, WindEnv(64).train_tasks)

    def test_an_episode_in_the_mirror_is_the_mirror_image(self) -> None:
        env = WindEnv(2)
        wind = env.train_tasks[:1] * torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        env.reset(TensorDict({"wind": wind}), set_state=True)
        for _ in range(10):
            action = torch.rand(2) * 2 - 1
            data = step(env, torch.stack([action, action * torch.tensor([-1.0, 1.0])]))
            left, right = data["observation"] * torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
            # the original rounds actions in float32, and that differs between the two sides
            torch.testing.assert_close(left, right)

    def test_tests_are_never_mirrored(self) -> None:
        env = WindEnv(split="test", mirror=True)
        env.reset()
        assert torch.equal(env.wind, env.test_tasks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, r"split must be one of \('train', 'test'\), got 'validation'"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"num_tasks": -1}, "num_tasks must be at least 1, got -1"),
        ({"num_train_tasks": 0}, "num_train_tasks must be at least 1, got 0"),
        ({"num_test_tasks": 0}, "num_test_tasks must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"max_wind": -0.1}, "max_wind must be finite and not negative, got -0.1"),
        ({"max_wind": float("nan")}, "max_wind must be finite"),
        ({"goal_radius": 0.0}, "goal_radius must be finite and positive, got 0.0"),
        ({"num_train_tasks": 51}, r"51 \+ 150 is more than num_tasks = 200.*raise num_tasks"),
        ({"split": "test", "num_envs": 64}, "150 test tasks.*num_envs=64; leave num_envs out"),
        ({"shaping_radii": (1.0, 0.1)}, r"positive smallest.*got \(1.0, 0.1\); None emits no"),
        ({"shaping_radii": (0.0, 1.0)}, r"positive smallest.*got \(0.0, 1.0\)"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindEnv(**arguments)


def test_wind_is_given_without_a_batch_size() -> None:
    env, wind = WindEnv(3), torch.rand(3, 2, dtype=torch.float64)
    env.reset(TensorDict({"wind": wind}), set_state=True)
    assert torch.equal(env.wind, wind)
    with pytest.raises(ValueError, match=r'"wind" of shape \(3, 2\), got \(2, 2\)'):
        env.reset(TensorDict({"wind": wind[:2]}), set_state=True)
