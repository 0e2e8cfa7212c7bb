"""Gymnasium's and popgym's own environments behind TorchRL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import check_env_specs

from tests.envs._gym_probe import Probe
from tests.envs._helpers import POPGYM
from torchrl_shm import SHMModule
from torchrl_shm.envs import make_gym_env, make_popgym_env, popgym
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import RolloutCollector

pytest.importorskip("popgym", reason="the original environments come with the extra popgym")
gymnasium: Any = pytest.importorskip("gymnasium")
spaces: Any = gymnasium.spaces


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_any_gymnasium_environment(id: str) -> None:
    env: Any = make_gym_env(id, 2, previous_action=True, previous_reward=True, seed=0)
    check_env_specs(env)
    assert env.policy_keys == ("observation", "previous_action", "previous_reward")
    data = env.rollout(12, break_when_any_done=False)
    assert data.shape == (2, 12)
    assert not data["previous_action"][:, 0].any()
    action = data["action"][:, :-1]
    if id == "CartPole-v1":
        action = torch.nn.functional.one_hot(action, 2)
    # reset rows start from zero again
    going_on = ~data["next", "done"][:, :-1]
    assert torch.equal(data["previous_action"][:, 1:], action * going_on)
    reward = data["next", "reward"][:, :-1]
    assert torch.equal(data["previous_reward"][:, 1:], reward * going_on)


def test_seed_decides() -> None:
    first, again, other = (
        make_gym_env("CartPole-v1", 2, seed=seed).reset()["observation"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_original_popgym() -> None:
    env = make_popgym_env("BattleshipEasy", 2, seed=0)
    check_env_specs(env)
    assert env.action_spec.shape == popgym.BattleshipEnv(2).action_spec.shape


# numpy 2.4 warns about what gymnasium's pendulum does
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", POPGYM)
def test_observations_are_those_of_our_own(name: str, wrapped: bool) -> None:
    options: dict[str, Any] = {"previous_action": wrapped, "antialias": wrapped}
    env = make_popgym_env(f"{name}Easy", 2, seed=0, **options)
    ours = POPGYM[name](2, seed=0, **options)
    theirs = env.rollout(3, break_when_any_done=False)["observation"]
    rollout = ours.rollout(3, break_when_any_done=False)["observation"]
    assert theirs.shape == rollout.shape
    assert theirs.dtype == rollout.dtype
    if "Only" not in name:
        # as many blocks, with one one each
        assert torch.equal(theirs.sum(-1), rollout.sum(-1))
        assert set(theirs.unique().tolist()) == {0, 1}


def test_observations_that_are_indices_become_one_hot() -> None:
    for id, width, one in (("FrozenLake-v1", 16, 0), ("CliffWalking-v1", 48, 36)):
        env = make_gym_env(id, 2, seed=0)
        check_env_specs(env)
        seen = env.reset()["observation"]
        assert seen.shape == (2, width)
        assert seen.nonzero()[:, 1].tolist() == [one] * 2


def test_parts_of_a_tuple_are_entries() -> None:
    env: Any = make_gym_env("Blackjack-v1", 2, seed=0)
    seen = env.reset()
    assert env.policy_keys == tuple(("observation", str(i)) for i in range(3))
    for key, width in zip(env.policy_keys, (32, 11, 2), strict=True):
        assert seen[key].shape == (2, width)
        assert seen[key].sum(-1).tolist() == [1, 1]


def test_arguments_and_a_time_limit() -> None:
    options = {"desc": ["SFFFG"], "is_slippery": False}
    env: Any = make_gym_env("FrozenLake-v1", 2, kwargs=options, max_episode_steps=3)
    assert not env.endless
    data = env.rollout(
        9, TensorDictModule(lambda _: torch.tensor([2, 0]), ["observation"], ["action"])
    )
    # one goes right, where the goal is four steps away, the other stays where it is
    assert data["observation"].argmax(-1).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert data["next", "truncated"][..., 0].tolist() == [[False, False, True]] * 2


def test_a_task_without_a_time_limit_says_so() -> None:
    assert make_gym_env("CliffWalking-v1").endless  # pyright: ignore
    assert not make_gym_env("CliffWalking-v1", max_episode_steps=9).endless  # pyright: ignore


def test_a_module_that_registers_an_environment(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n"
        "from tests.envs._gym_probe import Probe\n"
        "make = lambda: Probe(gymnasium.spaces.Discrete(3))\n"
        "gymnasium.register('Mine-v0', entry_point=make, disable_env_checker=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make_gym_env("my_module:Mine-v0", 2).rollout(3).shape == (2, 3)
    finally:
        gymnasium.registry.pop("Mine-v0", None)
        sys.modules.pop("my_module", None)


@pytest.fixture
def probe() -> Iterator[Callable[..., str]]:
    """Registers an environment of probes."""

    def register(**options: Any) -> str:
        make = partial(Probe, spaces.Discrete(2), **options)
        gymnasium.register("Probe-v0", entry_point=make, disable_env_checker=True)
        return "Probe-v0"

    yield register
    gymnasium.registry.pop("Probe-v0", None)


class TestResets:
    def test_one_that_raises_is_named_with_its_seed(self, probe: Any) -> None:
        # the first environment is reset once before, without a seed
        env = make_gym_env(probe(fail_at=2), 2, seed=31)
        message = r"environment 0 of Probe-v0: reset\(seed=31\) raised OSError: the robot"
        with pytest.raises(RuntimeError, match=message):
            env.reset()

    def test_a_later_one_is_named_too(self, probe: Any) -> None:
        env = make_gym_env(probe(fail_at=3), 2, seed=31)
        env.reset()
        message = r"environment 0 of Probe-v0: a reset after reset\(seed=31\) raised OSError"
        with pytest.raises(RuntimeError, match=message):
            env.reset()

    def test_many_lines_of_an_error_are_one(self, probe: Any) -> None:
        class Talkative(Probe):
            def reset(self, **_: Any) -> Any:
                raise OSError("the robot\n  is not on:\n\tpress the button")

        make = partial(Talkative, spaces.Discrete(2))
        gymnasium.register("Talkative-v0", entry_point=make, disable_env_checker=True)
        try:
            with pytest.raises(RuntimeError, match=r"OSError: the robot is not on: press the but"):
                make_gym_env("Talkative-v0")
        finally:
            gymnasium.registry.pop("Talkative-v0")

    def test_a_first_one_that_raises(self, probe: Any) -> None:
        with pytest.raises(
            RuntimeError, match=r"environment 0 of Probe-v0: the first reset, .*OSErr"
        ):
            make_gym_env(probe(fail_at=1))

    def test_a_step_that_raises_is_named_too(self, probe: Any) -> None:
        env = make_gym_env(probe(break_at=3), 2)
        with pytest.raises(RuntimeError, match=r"^environment 0 of Probe-v0: a step .*") as error:
            env.rollout(9, break_when_any_done=False)
        assert str(error.value).endswith("a step raised OSError: the robot is off")
        assert isinstance(error.value.__cause__, OSError)

    @pytest.mark.parametrize(
        ("method", "returned", "words"),
        [
            ("reset", {"eye": 1, "pressed": 2}, "the first reset, .* returned dict, and not .obs"),
            ("reset", np.zeros(2), r"returned ndarray, and not \(observation, info\), info a dict"),
            ("reset", (np.zeros(2), 1.0), r"returned \(ndarray, float\), and not"),
            (
                "step",
                (np.zeros(2), 0.0, False, {}),
                r"a step returned \(ndarray, float, bool, dict\)",
            ),
            (
                "step",
                (np.zeros(2), 0.0, False, False, None),
                r"a step returned .*NoneType\), and not",
            ),
        ],
    )
    def test_what_is_no_answer_of_gymnasium(
        self, probe: Any, monkeypatch: pytest.MonkeyPatch, method: str, returned: Any, words: str
    ) -> None:
        monkeypatch.setattr(Probe, method, lambda *_, **__: returned)
        with pytest.raises(ValueError, match=f"^environment 0 of Probe-v0: .*{words}") as error:
            make_gym_env(probe()).rollout(3)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_an_episode_that_starts_with_no_number(self, probe: Any, value: float) -> None:
        first = np.array([0, value], np.float32)
        message = rf"'observation' is {value} in row 0 after a reset; fix the environment"
        with pytest.raises(FloatingPointError, match=message):
            make_gym_env(probe(first=first), 2)

    def test_an_environment_whose_own_module_is_missing(self, probe: Any) -> None:
        def make(**_: Any) -> Any:
            import no_such_simulator  # noqa: F401 # pyright: ignore

        gymnasium.register("Simulated-v0", entry_point=make)
        try:
            with pytest.raises(
                ValueError, match=r"'Simulated-v0' cannot be imported: .*simulator'"
            ):
                make_gym_env("Simulated-v0")
        finally:
            gymnasium.registry.pop("Simulated-v0")

    def test_episodes_of_one_step(self, probe: Any) -> None:
        env = make_gym_env(probe(length=1), 2)
        data = env.rollout(4, break_when_any_done=False)
        assert data["next", "terminated"].all()
        assert data["next", "reward"].unique().tolist() == [1]

    def test_every_environment_has_a_seed_of_its_own(self) -> None:
        first = make_gym_env("CartPole-v1", 3, seed=5).reset()["observation"]
        alone = make_gym_env("CartPole-v1", 1, seed=5).reset()["observation"]
        assert torch.equal(first[:1], alone)
        assert len(first.unique(dim=0)) == 3


@pytest.mark.parametrize(
    "make",
    [
        partial(make_gym_env, "CartPole-v1", previous_action=True),
        partial(make_gym_env, "Blackjack-v1"),
        partial(make_popgym_env, "BattleshipEasy", previous_action=False, antialias=False),
    ],
    ids=lambda make: "_".join((*make.args, *make.keywords)),
)
def test_a_memory_learns_from_it(make: Any) -> None:
    policy = make_actor_critic(make(2), SHMModule).get_policy_operator()
    rows = RolloutCollector(make, policy, num_envs=2, rollout_length=5, total_frames=10)
    (batch,) = rows
    rows.close()
    assert batch["logits"].shape == (2, 5, make(1).action_spec.n)


class TestMistakes:
    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="gymnasium has no environment 'Nothing-v0'"):
            make_gym_env("Nothing-v0")
        with pytest.raises(
            ValueError, match=r"no environment 'CartPol-v1': did you mean CartPole-v"
        ):
            make_gym_env("CartPol-v1")
        # not a name that is nearly the same: what is missing is the module
        with pytest.raises(
            ValueError, match=r"'no_such_module:A-v0' cannot be imported: No module named 'no_such"
        ):
            make_gym_env("no_such_module:A-v0")
        for id, advice in (
            ("no_such_module:A-v0", r"For a file of this folder set PYTHONPATH=\.$"),
            ("sub/robots.py:A-v0", "write robots:A-v0, with PYTHONPATH=sub$"),
            ("json:CartPol-v1", "did you mean json:CartPole-v"),
            ("json:Lights-v0", "json was imported and registers none of this name$"),
            ("Nothing-v0", "One of your own is module:Nothing-v0$"),
        ):
            with pytest.raises(ValueError, match=advice):
                make_gym_env(id)
        with pytest.raises(ValueError, match=r"'FrozenLake-v1', slip=1\) raised TypeError: .*slip"):
            make_gym_env("FrozenLake-v1", kwargs={"slip": 1})
        with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
            make_gym_env("CartPole-v1", max_episode_steps=0)
        with pytest.raises(ValueError, match=r"popgym has no environment 'Nothing'.*'Autoencode"):
            make_popgym_env("Nothing")
        with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
            make_gym_env("CartPole-v1", 0)

    @pytest.mark.parametrize(
        ("module", "make"),
        [
            ("gymnasium", partial(make_gym_env, "CartPole-v1")),
            ("popgym.envs", partial(make_popgym_env, "AutoencodeEasy")),
        ],
    )
    def test_package_that_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, module: str, make: Any
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'torchrl_shm\[popgym\]'"):
            make()
