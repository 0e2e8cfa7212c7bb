"""Wind: the original's numbers to the last bit, its tasks, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, RewardSum, TransformedEnv

from tests.envs._helpers import inject, step
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
RESET = torch.tensor([True, False, True, False])
TOO_STRONG = [17, 27, 50, 56, 60, 75, 108, 134, 136, 169, 175]

Policy = Callable[[WindEnv, Tensor, Tensor | None], Tensor]


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
    """First toward the goal, then as the oracle with the wind that the first step showed."""
    if inferred is None:
        return env.goal.expand_as(observation)
    return (env.goal - observation - inferred) / 0.1


class TestOriginal:
    @pytest.fixture
    def recorded(self) -> dict[str, Tensor]:
        with np.load(RECORDED) as data:
            return {name: torch.from_numpy(data[name]) for name in data}

    def test_steps_are_exact(self, recorded: dict[str, Tensor]) -> None:
        # the recording covers both rewards and clipping
        assert 0 < recorded["reward"].sum() < recorded["reward"].numel()
        assert recorded["action"].abs().max() > 1
        env = WindEnv(len(recorded["wind"]))
        data = inject(env, wind=recorded["wind"])
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

    def test_float32_actions_move_as_in_the_original(self) -> None:
        """NumPy computes in the dtype of the action, with bounds in float32, and clips twice."""
        action = np.random.RandomState(0).uniform(-1.5, 1.5, (1001, 2)).astype(np.float32)
        action[:4] = [[-1, 1], [1, -1], [0, -0.0], [np.nextafter(np.float32(1), 0), 1e-30]]
        high = np.full(2, 0.1, np.float32)
        clipped = np.clip(action, -1, 1)
        move = np.clip(-high + (clipped + 1.0) * 0.5 * (high + high), -high, high)
        assert move.dtype == np.float32

        env = WindEnv(len(action))
        inject(env, wind=torch.zeros(len(action), 2))
        data = step(env, torch.from_numpy(action))
        assert torch.equal(env._running()["position"], torch.from_numpy(move).double())
        assert torch.equal(data["previous_action"], torch.from_numpy(clipped))


class TestTasks:
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


class TestRules:
    def test_goal_does_not_end_the_episode_and_success_stays(self) -> None:
        env = WindEnv(1, max_steps=30)
        inject(env, wind=torch.zeros(1, 2))
        up, down = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])
        data = [step(env, action) for action in [up] * 10 + [down] * 5]
        assert [x["reward"].item() for x in data] == [0] * 9 + [1] + [0] * 5
        assert [x["success"].item() for x in data] == [False] * 9 + [True] * 6
        assert not any(x["done"].item() for x in data)

    def test_actions_out_of_bounds_are_clipped(self) -> None:
        env = WindEnv(2)
        inject(env, wind=torch.zeros(2, 2))
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

    def test_steps_are_counted_per_environment(self) -> None:
        env = WindEnv(4, seed=0)
        env.reset()
        for _ in range(10):
            data = step(env, torch.zeros(4, 2))
        env.reset(data.exclude("reward").set("_reset", RESET[:, None]))
        done = torch.stack([step(env, torch.zeros(4, 2))["done"][:, 0] for _ in range(100)])
        assert (done.int().argmax(0) + 1).tolist() == [100, 90, 100, 90]


class TestInjection:
    def test_lasts_one_episode(self) -> None:
        env = WindEnv(split="test", max_steps=2)
        inject(env, wind=torch.zeros(150, 2))
        assert not env.wind.any()
        env.reset()
        assert torch.equal(env.wind, env.test_tasks)

    def test_reaches_the_chosen_rows_only(self) -> None:
        env = WindEnv(4)
        env.reset()
        wind = env.wind
        inject(env, RESET, wind=torch.full((4, 2), 0.05))
        assert (env.wind[RESET] == torch.tensor(0.05).double()).all()
        assert torch.equal(env.wind[~RESET], wind[~RESET])

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

    def test_says_what_is_missing(self) -> None:
        for entries, found in (({}, "none"), ({"wind": torch.zeros(3, 1)}, r"\(3, 1\)")):
            with pytest.raises(ValueError, match=rf'"wind" of shape \(3, 2\), got {found}'):
                inject(WindEnv(3), **entries)

    def test_needs_no_batch_size(self) -> None:
        env, wind = WindEnv(3), torch.rand(3, 2, dtype=torch.float64)
        env.reset(TensorDict({"wind": wind}), set_state=True)
        assert torch.equal(env.wind, wind)
        with pytest.raises(ValueError, match=r'"wind" of shape \(3, 2\), got \(2, 2\)'):
            env.reset(TensorDict({"wind": wind[:2]}), set_state=True)


class TestRandomness:
    @staticmethod
    def winds(env: WindEnv) -> Tensor:
        seen = []
        for _ in range(3):
            env.reset()
            seen.append(env.wind)
        return torch.stack(seen)

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


def test_saved_state_is_of_the_same_size() -> None:
    env = WindEnv(5)
    env.reset()
    with pytest.raises(ValueError, match="of 5 environments, this is 6; build it with num_"):
        WindEnv(6).load_state_dict(env.state_dict())


def test_to_the_same_device() -> None:
    env = WindEnv(5, seed=0)
    env.reset()
    wind = env.wind
    assert env.to("cpu") is env
    assert torch.equal(env.wind, wind)


class TestShaping:
    def test_counts_discs_on_a_logarithmic_scale(self) -> None:
        env = WindEnv(5, shaping_radii=(0.01, 10.0))
        # distances 0, 0.01, 0.1, 1 and 20 after a step without action
        position = torch.tensor([1.0, 1.01 - 1e-9, 1.1, 2.0, 21.0], dtype=torch.float64)
        inject(env, wind=torch.stack([torch.zeros(5).double(), position], -1))
        data = step(env, torch.zeros(5, 2))
        expected = torch.tensor([[1.0], [1.0], [2 / 3], [1 / 3], [0.0]])
        torch.testing.assert_close(data["shaping"], expected)
        assert data["reward"][:, 0].tolist() == [1, 1, 0, 0, 0]

    def test_changes_nothing_else(self) -> None:
        plain, shaped = WindEnv(4, seed=0), WindEnv(4, seed=0, shaping_radii=(0.001, 10.0))
        assert (plain.reset() == shaped.reset().exclude("shaping")).all()
        action = torch.rand(4, 2)
        assert (step(plain, action) == step(shaped, action).exclude("shaping")).all()


class TestMirror:
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


@pytest.mark.parametrize("max_wind", [-0.1, float("nan"), float("inf")])
def test_winds_are_finite(max_wind: float) -> None:
    with pytest.raises(
        ValueError, match=f"max_wind must be finite and not negative, got {max_wind}"
    ):
        WindEnv(max_wind=max_wind)
