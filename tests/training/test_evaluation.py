"""Every test task once, with the mean action, and without a trace."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torchrl.envs import ExplorationType, exploration_type

from tests.training._helpers import MEMORIES, Countdown, make_operator
from torchrl_shm import SHMModule, WindEnv, training
from torchrl_shm.envs import PointRobotEnv, TMazeEnv
from torchrl_shm.envs.popgym import BattleshipEnv
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import evaluate

make_test_env = partial(
    WindEnv, split="test", num_tasks=16, num_train_tasks=4, num_test_tasks=12, max_steps=10,
    goal_radius=0.9,
)  # fmt: skip


@pytest.fixture(params=MEMORIES)
def policy(request: pytest.FixtureRequest) -> Any:
    return make_operator(MEMORIES[request.param]).get_policy_operator()


def test_result(policy: Any) -> None:
    result: Any = evaluate(policy, make_test_env(), keep_rollout=True)
    assert result.rollout.shape == (12, 10)
    assert result.rollout["next", "done"].squeeze(-1).sum(-1).tolist() == [1] * 12
    assert result.returns.dtype == torch.float64
    expected = result.rollout["next", "reward"].double().sum((1, 2))
    torch.testing.assert_close(result.returns, expected, rtol=0, atol=0)
    assert result.success is not None
    assert torch.equal(result.success, result.returns > 0)
    assert result.mean_return == float(result.returns.mean())
    assert result.success_rate == float((result.returns > 0).double().mean())
    # some succeed and some do not, or the test shows nothing
    assert 0 < result.success_rate < 1


def test_every_task_once_with_the_mean_action(policy: Any) -> None:
    env = make_test_env()
    rollout: Any = evaluate(policy, env, keep_rollout=True).rollout
    moved = rollout["next", "observation"] - rollout["observation"]
    wind = moved - 0.1 * rollout["action"].clamp(-1, 1)
    expected = env.test_tasks.float()[:, None].expand_as(wind)
    torch.testing.assert_close(wind, expected, rtol=0, atol=1e-6)
    assert torch.equal(rollout["action"], rollout["loc"])
    assert exploration_type() != ExplorationType.DETERMINISTIC
    # the memory starts empty and is carried
    assert rollout["is_init"][:, 0].all()
    assert not rollout["is_init"][:, 1:].any()


def test_actions_are_sampled_when_asked(policy: Any) -> None:
    env = make_test_env()
    generator = torch.get_rng_state()
    first, second, other = (
        evaluate(policy, env, seed=seed, deterministic=False, keep_rollout=True).rollout
        for seed in (0, 0, 1)
    )
    assert first is not None
    # as far from the mean as in training
    spread = ((first["action"] - first["loc"]) / first["scale"]).std()
    assert 0.8 < float(spread) < 1.2
    # and the same again
    assert second is not None
    assert other is not None
    assert torch.equal(first["action"], second["action"])
    assert not torch.equal(first["action"], other["action"])
    assert torch.equal(torch.get_rng_state(), generator)


def test_choices_are_sampled_when_asked() -> None:
    env = BattleshipEnv(64)
    policy = make_actor_critic(env, SHMModule).get_policy_operator()
    likely, sampled = (
        evaluate(policy, env, deterministic=x, keep_rollout=True).rollout for x in (True, False)
    )
    assert likely is not None
    assert sampled is not None
    assert torch.equal(likely["action"], likely["logits"].argmax(-1))
    # a new policy is nearly uniform over 64 cells
    repeated = (sampled["action"] == sampled["logits"].argmax(-1)).double().mean()
    assert 0.005 < float(repeated) < 0.05


def test_repeats_and_leaves_no_trace(policy: Any) -> None:
    env = make_test_env()
    generator = torch.get_rng_state()
    parameters = {name: value.clone() for name, value in policy.named_parameters()}
    first: Any = evaluate(policy, env, keep_rollout=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not first.rollout["loc"].requires_grad
    for name, value in policy.named_parameters():
        assert torch.equal(value, parameters[name])
        assert value.grad is None
    torch.rand(5)
    second: Any = evaluate(policy, env, keep_rollout=True)
    assert torch.equal(first.returns, second.returns)
    assert torch.equal(first.rollout["action"], second.rollout["action"])


@pytest.mark.parametrize(
    ("make_env", "rows"),
    [
        (WindEnv, 150),
        (partial(WindEnv, num_test_tasks=12), 12),
        (lambda **kwargs: WindEnv(**kwargs), 150),
        (TMazeEnv, 7),
        (partial(TMazeEnv, length=3), 7),
    ],
    ids=["class", "partial", "function", "drawn", "partial, drawn"],
)
def test_lists_of_tests_are_played_and_others_drawn(make_env: Any, rows: int) -> None:
    torch.manual_seed(0)
    make_env(**({"split": "test"} if rows != 7 else {"num_envs": 7, "seed": 0}))
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    env = training.make_test_env(make_env, num_episodes=7)
    # looking at what there is to be built draws nothing
    assert torch.equal(torch.get_rng_state(), expected)
    assert env.batch_size == (rows,)
    assert env.split == (None if rows == 7 else "test")


def test_repeats_starts_that_are_drawn() -> None:
    policy = make_operator(SHMModule).get_policy_operator()
    options: dict[str, Any] = {"num_tasks": 9, "num_train_tasks": 3, "num_test_tasks": 6}
    env = PointRobotEnv(split="test", max_steps=4, **options)
    starts = []
    for seed in (0, 0, 1):
        evaluate(policy, env, seed=seed)
        starts.append(env.start)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_seed_chooses_the_gates() -> None:
    policy = make_operator(SHMModule).get_policy_operator()
    rollouts: list[Any] = [
        evaluate(policy, make_test_env(), seed=seed, keep_rollout=True).rollout for seed in (0, 1)
    ]
    first, second = rollouts
    assert not torch.equal(first["theta_index"], second["theta_index"])


def test_shaping_does_not_count() -> None:
    policy = make_operator().get_policy_operator()
    env = WindEnv(4, max_steps=5, goal_radius=1e-9, shaping_radii=(0.001, 10.0))
    result: Any = evaluate(policy, env, keep_rollout=True)
    assert result.rollout["next", "shaping"].min() > 0
    assert result.returns.tolist() == [0.0] * 4


class TestEpisodesOfDifferentLength:
    def test_returns_stop_at_the_end(self, policy: Any) -> None:
        result: Any = evaluate(policy, Countdown(4), keep_rollout=True)
        # the same where they are not kept
        assert torch.equal(evaluate(policy, Countdown(4)).returns, result.returns)
        assert evaluate(policy, Countdown(4)).rollout is None
        assert result.returns.tolist() == [1, 1 + 2, 1 + 2 + 3, 1 + 2 + 3 + 4]
        assert result.rollout.shape == (4, 4)
        # the task has none
        assert (result.success, result.success_rate) == (None, None)

    def test_success_counts_up_to_the_end(self) -> None:
        # in the first step; only later than the end; in the last step; in between
        steps = [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
        env = Countdown(4, success=torch.tensor(steps, dtype=torch.bool))
        result = evaluate(make_operator().get_policy_operator(), env)
        assert result.success is not None
        assert result.success.tolist() == [True, False, True, True]
        assert result.success_rate == 0.75

    def test_what_goes_on_after_the_end_does_not_count(self, policy: Any) -> None:
        # the first one ends with its first step, and plays on
        success = torch.tensor([[0, 1], [0, 1]], dtype=torch.bool)
        result = evaluate(policy, Countdown(2, success=success))
        assert result.returns.tolist() == [1, 1 + 2]
        assert result.success is not None
        assert result.success.tolist() == [False, True]


def test_steps_are_not_kept_unless_they_are_asked_for() -> None:
    policy: Any = make_operator().get_policy_operator()
    env = WindEnv(3, max_steps=40, goal_radius=1e-9)
    refs: list[Any] = []
    counts: list[int] = []

    def look(module: Any, arguments: Any, step: Any) -> None:
        refs.append(weakref.ref(step["loc"]))
        counts.append(sum(ref() is not None for ref in refs))

    policy.register_forward_hook(look)
    evaluate(policy, env)
    assert len(counts) == 40
    assert max(counts) <= 3
