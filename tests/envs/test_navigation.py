"""Tasks of Wind and Point Robot: the list, its splits, and what both refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import check_env_specs

from torchrl_shm.envs import PointRobotEnv, WindEnv

FIXTURES = Path(__file__).parents[1] / "fixtures"
HARD: dict[str, Any] = {"num_train_tasks": 10, "num_test_tasks": 190}
ENVS: list[Any] = [WindEnv, PointRobotEnv]


def played(env: Any) -> Tensor:
    """The tasks of the running episodes."""
    return env.wind if isinstance(env, WindEnv) else env.goal


@pytest.mark.parametrize(
    ("make", "first_ids", "first_task"),
    [
        (WindEnv, [67, 193, 117, 142, 118, 27, 173, 11, 34, 196], (-0.047595, -0.068263)),
        (PointRobotEnv, [33, 194, 175, 59, 170, 9, 54, 104, 18, 181], (0.327249, 0.944938)),
    ],
)
def test_splits(make: Any, first_ids: list[int], first_task: tuple[float, float]) -> None:
    env, hard = make(seed=1), make(seed=2, **HARD)
    assert env.train_ids[:10].tolist() == first_ids
    assert (len(env.train_ids), len(env.test_ids)) == (50, 150)
    assert sorted([*env.train_ids.tolist(), *env.test_ids.tolist()]) == list(range(200))
    # whatever the seed
    assert torch.equal(hard.train_tasks, env.train_tasks[:10])
    assert torch.equal(hard.test_tasks[-150:], env.test_tasks)
    assert torch.equal(hard.test_ids[-150:], env.test_ids)
    # training tasks are the first and tests the last, whatever is left between them
    assert torch.equal(make(num_train_tasks=10).test_ids, env.test_ids)
    first = torch.cat([env.train_tasks, env.test_tasks])[
        torch.cat([env.train_ids, env.test_ids]) == 0
    ]
    expected = torch.tensor([first_task], dtype=torch.float64)
    torch.testing.assert_close(first, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("make", "name", "entry"),
    [(WindEnv, "wind_shm", "wind"), (PointRobotEnv, "point_robot_shm", "goal")],
)
def test_recorded_tasks_are_tasks_of_ours(make: Any, name: str, entry: str) -> None:
    env = make()
    ids = torch.cat([env.train_ids, env.test_ids])
    tasks = torch.cat([env.train_tasks, env.test_tasks])
    with np.load(FIXTURES / f"{name}.npz") as data:
        for task, recorded in zip(data["task"], torch.from_numpy(data[entry]), strict=True):
            assert torch.equal(tasks[ids == int(task)], recorded[None])


@pytest.mark.parametrize("make", ENVS)
class TestSplits:
    def test_defaults(self, make: Any) -> None:
        for split, count in (("train", 64), ("test", 150)):
            env = make(split=split)
            check_env_specs(env)
            data = env.rollout(1_000)
            steps = env.max_steps * getattr(env, "num_episodes", 1)
            assert data.shape == (count, steps)
            assert data["next", "truncated"][:, -1].all()
            assert not data["next", "done"][:, :-1].any()
            assert not data["next", "terminated"].any()
            names = ("previous_action", "success", "done")
            assert not any(env.reset()[name].any() for name in names)

    def test_tests_play_all_tasks_in_order(self, make: Any) -> None:
        env = make(split="test", seed=0, shaping_radii=(0.001, 10.0), mirror=True)
        assert "shaping" not in env.observation_spec.keys()
        seen = []
        for _ in range(2):
            seen.append(env.reset()["observation"])
            assert torch.equal(played(env), env.test_tasks)
            assert "shaping" not in env.reset().keys()
        # starts are drawn
        assert torch.equal(*seen) == (make is WindEnv)

    def test_in_a_mirror_half_of_the_tasks_have_the_opposite_x(self, make: Any) -> None:
        env = make(4000, mirror=True, seed=0)
        env.reset()
        tasks = env.train_tasks
        same = (played(env)[:, None] == tasks).all(-1)
        mirrored = (played(env)[:, None] == tasks * torch.tensor([-1.0, 1.0])).all(-1)
        # each is one of the training tasks, seen directly or in the mirror
        assert torch.equal(same.sum(1) + mirrored.sum(1), torch.ones(4000, dtype=torch.int64))
        assert 0.45 < mirrored.any(1).double().mean() < 0.55
        assert same.any(0).all()
        assert mirrored.any(0).all()
        assert torch.equal(tasks, make().train_tasks)

    @pytest.mark.parametrize("part", [False, True])
    def test_failed_tasks_are_played_again(self, make: Any, part: bool) -> None:
        env = make(8000, num_train_tasks=10, mirror=True, repeat_failed=0.8, seed=0)
        env.reset()
        before = {name: x.clone() for name, x in env.get_extra_state().items()}
        # half of the rows have found the goal, and where only a part starts every second one does
        found, starts = torch.arange(8000) < 4000, torch.arange(8000) % 2 == 0
        env.set_extra_state({**before, "success": found.unsqueeze(-1)})
        mask = TensorDict({"_reset": (starts if part else starts | True).unsqueeze(-1)}, [8000])
        env.reset(mask)
        task = "wind" if make is WindEnv else "goal"
        same = (played(env) == before[task]).all(-1)
        assert same[~starts].all() == part
        # one of twenty tasks is drawn again by chance: 0.05 and 0.8 + 0.2 * 0.05
        assert 0.03 < same[starts & found].double().mean() < 0.07
        assert 0.79 < same[starts & ~found].double().mean() < 0.83
        if task == "goal":
            # from other starts
            assert not (env.start == before["start"]).all(-1).any(-1)[starts].any()
        tests = make(split="test", repeat_failed=0.8)
        tests.reset()
        tests.reset()
        assert torch.equal(played(tests), tests.test_tasks)

    def test_training_draws_every_task_and_no_other(self, make: Any) -> None:
        env = make(5_000, seed=0)
        tasks = env.train_tasks.clone()
        env.reset()
        same = (played(env)[:, None] == tasks).all(-1)
        assert (same.sum(-1) == 1).all()
        # 100 are expected of each; six standard deviations are 60
        assert (same.sum(0) - 100).abs().max() < 60
        assert torch.equal(env.train_tasks, tasks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, r"split='validation' is unknown; .*\('train', 'test'\)"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"num_tasks": -1}, "num_tasks must be at least 1, got -1"),
        ({"num_train_tasks": 0}, "num_train_tasks must be at least 1, got 0"),
        ({"num_test_tasks": 0}, "num_test_tasks must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"goal_radius": 0.0}, "goal_radius must be finite and positive, got 0.0"),
        ({"num_train_tasks": 51}, r"51 \+ 150 is more than num_tasks = 200.*raise num_tasks"),
        ({"split": "test", "num_envs": 64}, "150 test tasks.*num_envs=64; leave num_envs out"),
        ({"repeat_failed": 1.0}, r"repeat_failed must be at least 0 and below 1, got 1\.0; at 1"),
        ({"repeat_failed": -0.1}, r"repeat_failed must be at least 0 and below 1, got -0\.1"),
        ({"shaping_radii": (1.0, 0.1)}, r"positive smallest.*got \(1.0, 0.1\); None emits no"),
        ({"shaping_radii": (0.0, 1.0)}, r"positive smallest.*got \(0.0, 1.0\)"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindEnv(**arguments)
