"""Vector environments of gymnasium play as the same environments one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict.nn import TensorDictModule

from tests.envs._gym_probe import Probe
from torchrl_shm import SHMModule
from torchrl_shm.envs import make_gym_env
from torchrl_shm.envs._gym_rows import OneByOne, Together
from torchrl_shm.envs._gym_task import GymTask
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import RolloutCollector, evaluate

spaces: Any = gymnasium.spaces
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
SEED = 5


def probe(length: int = 4) -> Probe:
    parts = {"position": spaces.Box(-1, 1, (2,)), "hand": spaces.Tuple([spaces.Discrete(3)])}
    mask = np.array([1, 0, 1], np.int8)
    return Probe(spaces.Discrete(3), spaces.Dict(parts), length=length, mask=mask)


def one_by_one(makes: list[Callable[[], Any]], **options: Any) -> GymTask:
    task = GymTask(OneByOne([make() for make in makes], "x"), name="x", **options)
    # those that a vector environment of gymnasium gives to its rows
    task._seeds = [SEED + i for i in range(len(makes))]
    return task


def together(makes: list[Callable[[], Any]], mode: AutoresetMode, **options: Any) -> GymTask:
    task = GymTask(Together(SyncVectorEnv(makes, autoreset_mode=mode), "x"), name="x", **options)
    task.set_seed(SEED)
    return task


def play(task: GymTask, steps: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)

    def act(_: Any) -> torch.Tensor:
        spec = task.action_spec
        numbers = torch.rand(spec.shape, generator=generator)
        # some numbers lie outside of the bounds
        numbers = 4 * numbers - 2 if spec.dtype == torch.float32 else 2 * numbers
        return numbers.to(spec.dtype)

    first = next(iter(task.observation_spec.keys(True, True)))
    return task.rollout(steps, TensorDictModule(act, [first], ["action"]), **options)


def same(first: Any, second: Any) -> None:
    assert set(first.keys(True, True)) == set(second.keys(True, True))
    for key, value in first.items(True, True):
        torch.testing.assert_close(value, second[key], rtol=0, atol=0, msg=str(key))


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "makes",
    [
        [partial(gymnasium.make, "CartPole-v1")] * 3,
        [partial(gymnasium.make, "Pendulum-v1", max_episode_steps=9)] * 2,
        [partial(gymnasium.make, "Blackjack-v1")] * 4,
        [probe, partial(probe, 1), partial(probe, 7)],
    ],
    ids=["CartPole", "Pendulum", "Blackjack", "Dict"],
)
def test_it_plays_as_one_by_one(makes: Any, mode: AutoresetMode) -> None:
    options = {"previous_action": True, "previous_reward": True}
    first, second = one_by_one(makes, **options), together(makes, mode, **options)
    data = play(first, 60, break_when_any_done=False)
    assert data["next", "done"].any()
    same(data, play(second, 60, break_when_any_done=False))


@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_has_ended_waits(mode: AutoresetMode) -> None:
    makes: Any = [partial(probe, 2), partial(probe, 6), partial(probe, 3)]
    for task in (one_by_one(makes), together(makes, mode)):
        data = play(task, 9, break_when_all_done=True)
        assert data.shape == (3, 6)
        ends = data["next", "done"][..., 0]
        assert ends.int().argmax(-1).tolist() == [1, 5, 2]
        # it goes on to show its last observation
        assert ends[0, 1:].all()
        seen = data["next", "position"][0]
        assert torch.equal(seen[1:], seen[1:2].expand(5, 2))
        # what follows are new episodes of all rows
        again = play(task, 9, break_when_all_done=True)
        assert again["next", "reward"][:, 0, 0].tolist() == [1, 1, 1]
        assert not torch.equal(again["position"][:, 0], data["position"][:, 0])


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_row_that_is_not_stepped_gets_nothing(mode: AutoresetMode | None) -> None:
    makes: Any = [partial(probe, 1), partial(probe, 9)]
    task = one_by_one(makes) if mode is None else together(makes, mode)
    data = task.step(task.rand_action(task.reset()))["next"]
    assert data["done"].tolist() == [[True], [False]]
    waits = task.rand_action(data.clone()).set("_step", torch.tensor([False, True]))
    stepped = task.step(waits)["next"]
    assert stepped["reward"].tolist() == [[0], [2]]
    assert stepped["done"].tolist() == [[True], [False]]
    assert torch.equal(stepped["position"][0], data["position"][0])


def test_what_was_given_is_not_written_to() -> None:
    task = one_by_one([partial(probe, 1), partial(probe, 9)])
    first = task.reset()
    kept = first.clone()
    stepped = task.step(task.rand_action(first))["next"]
    ends = stepped.clone()
    reset = torch.tensor([True, False])
    task.reset(stepped.clone().set("_reset", reset))
    task.step(task.rand_action(first))
    same(kept, first.select(*kept.keys()))
    same(ends, stepped.select(*ends.keys()))


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers a task that comes with a vector environment."""

    def make(vector: Any) -> str:
        gymnasium.register("Many-v0", entry_point=probe, vector_entry_point=vector)
        return "Many-v0"

    yield make
    gymnasium.registry.pop("Many-v0", None)


def many(num_envs: int, autoreset_mode: Any = AutoresetMode.NEXT_STEP, length: int = 4) -> Any:
    return SyncVectorEnv([partial(probe, length)] * num_envs, autoreset_mode=autoreset_mode)


def test_from_the_name_to_a_batch(register: Any) -> None:
    make = partial(make_gym_env, register(many), vectorized=True, kwargs={"length": 3})
    env: Any = make(4, seed=1)
    assert env.endless
    assert set(env.policy_keys) == {"position", ("hand", "0"), "action_mask"}
    operator: Any = make_actor_critic(env, SHMModule)
    rows = RolloutCollector(
        make, get_behavior(operator), num_envs=4, rollout_length=7, total_frames=28
    )
    (batch,) = rows
    rows.close()
    assert batch["is_init"][0, :, 0].tolist() == [True, False, False] * 2 + [True]
    # what the mask forbids is never done
    assert not (batch["action"] == 1).any()
    result: Any = evaluate(operator.get_policy_operator(), env, keep_rollout=True)
    assert result.rollout.shape == (4, 3)


class TestRefusals:
    def test_episodes_that_start_one_step_late(self) -> None:
        with pytest.raises(ValueError, match=r"CartPole-v1 .*one step late.*leave vectorized out"):
            make_gym_env("CartPole-v1", 2, vectorized=True)

    def test_a_task_without_one(self) -> None:
        with pytest.raises(ValueError, match="doesn't have a vector entry point") as error:
            make_gym_env("Acrobot-v1", 2, vectorized=True)
        assert "\n" not in str(error.value)

    def test_what_it_raises_is_named(self, register: Any) -> None:
        env: Any = make_gym_env(register(many), 2, vectorized=True)
        data, rows = env.reset(), env._rows._env
        for method in ("step", "reset"):
            setattr(rows, method, partial(int, "no\nnumber"))
        message = "the vector environment of Many-v0: a {} raised TypeError: .*"
        with pytest.raises(RuntimeError, match=message.format("step")):
            env.step(env.rand_action(data))
        with pytest.raises(RuntimeError, match=message.format("reset")):
            env.reset()

    def test_what_is_no_answer_of_gymnasium(self, register: Any) -> None:
        env: Any = make_gym_env(register(many), 2, vectorized=True)
        env._rows._env.reset = lambda **_: {"eye": 1, "ear": 2}
        with pytest.raises(ValueError, match=r"Many-v0: a reset returned dict, and not \(obs"):
            env.reset()

    def test_a_row_in_the_middle_of_an_episode(self, register: Any) -> None:
        env = make_gym_env(register(many), 2, vectorized=True)
        data = env.step(env.rand_action(env.reset()))["next"]
        data["_reset"] = torch.tensor([True, False])
        with pytest.raises(RuntimeError, match=r"when their episodes end only.* rows \[0\]"):
            env.reset(data)


class Drawn(Probe):
    """An environment that draws itself."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(spaces.Discrete(2))
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((2, 3, 3), 10 * self.t, np.uint8)


def test_pictures() -> None:
    task = GymTask(OneByOne([Drawn("rgb_array"), Drawn("rgb_array")], "x"), name="x")
    task.step(task.rand_action(task.reset()))
    picture = task.render(1)
    assert picture is not None
    assert picture.shape == (2, 3, 3)
    assert picture.unique().tolist() == [10]
    assert GymTask(OneByOne([Drawn()], "x"), name="x").render() is None


@pytest.mark.parametrize("reward", [[1.0, 2.0], None])
def test_a_reward_that_is_no_number(reward: Any) -> None:
    env = probe()
    env.step = lambda action: (env.observation_space.sample(), reward, False, False, {})  # pyright: ignore
    task = one_by_one([lambda: env])
    match = rf"a reward of x is {re.escape(str(reward))}; it must be one number"
    with pytest.raises(ValueError, match=match):
        task.step(task.rand_action(task.reset()))
