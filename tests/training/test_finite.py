"""The first value that is not finite is named, and does not reach the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import TransformedEnv

from torchrl_shm import SHMModule
from torchrl_shm.envs import popgym
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import FiniteCheck, RolloutCollector
from torchrl_shm.training.finite import FiniteSteps

# where a module keeps the memory at the start of a sequence
START = "memory_lean"
ADVICE = r"It did not reach the parameters; lower algo\.learning_rate, bound .* memory\.clamp=100"
ADVICE_ON_REWARDS = "It did not reach the parameters; fix the environment, or leave such data out"


@pytest.fixture
def batch() -> TensorDict:
    """Integers, booleans and an empty entry are not checked."""
    shape = (3, 4)
    return TensorDict(
        {
            "observation": torch.zeros(*shape, 2),
            "action": torch.ones(shape, dtype=torch.int64),
            START: torch.zeros(*shape, 5),
            "nothing": torch.zeros(*shape, 0),
            "next": {
                "reward": torch.zeros(*shape, 1),
                "done": torch.zeros(*shape, 1, dtype=torch.bool),
            },
        },
        shape,
    )


def make_check(option: Any = "stop") -> FiniteCheck:
    check = FiniteCheck(option)
    check.update = 7
    return check


class TestRollouts:
    def test_finite(self, batch: TensorDict) -> None:
        check = make_check()
        assert check.rollouts(batch) is batch
        assert check.skipped == 0

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("key", ["observation", ("next", "reward")])
    def test_the_earliest_is_named(self, batch: TensorDict, key: Any, value: float) -> None:
        batch[key][1, 2, -1] = value
        # later, in an earlier sequence and in the other entry
        batch["observation"][0, 3] = torch.nan
        batch["next", "reward"][0, 3] = torch.nan
        name = key if isinstance(key, str) else key[-1]
        advice = ADVICE if isinstance(key, str) else ADVICE_ON_REWARDS
        match = (
            rf"update 7: non-finite data: .*'{name}'.* is {value} in sequence 1, step 2\. {advice}"
        )
        with pytest.raises(FloatingPointError, match=match):
            make_check().rollouts(batch)

    def test_a_memory_at_the_start_of_a_sequence(self, batch: TensorDict) -> None:
        batch[START][2, 0, 3] = torch.nan
        match = "'memory' is not finite at the start of sequence 2"
        with pytest.raises(FloatingPointError, match=match):
            make_check().rollouts(batch)

    def test_skip(self, batch: TensorDict, capsys: pytest.CaptureFixture[str]) -> None:
        check = make_check("skip")
        batch["observation"] += torch.arange(3.0).view(3, 1, 1)
        batch["next", "reward"][1, 2] = torch.nan
        left = check.rollouts(batch)
        assert left["observation"][:, 0, 0].tolist() == [0, 2]
        assert bool(left["next", "reward"].isfinite().all())
        assert check.skipped == 1
        err = capsys.readouterr().err
        assert err.startswith("update 7: non-finite data: ")
        assert err.endswith("is nan in sequence 1, step 2; skipped\n")
        batch["observation"][:, 0] = torch.nan
        with pytest.raises(FloatingPointError, match="no sequence of update 7 is finite"):
            check.rollouts(batch)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_memory_that_grows(
        self, batch: TensorDict, sign: int, recwarn: pytest.WarningsRecorder
    ) -> None:
        check = make_check()
        batch[START][1, 0, 3] = sign * 1e6
        check.rollouts(batch)
        assert not recwarn.list
        batch[START][1, 0, 3] = sign * 3.5e6
        match = r"update 7: 'memory' has grown to 3\.5e\+06; bound it with memory\.clamp=100"
        with pytest.warns(UserWarning, match=match):
            check.rollouts(batch)
        # once
        check.rollouts(batch)


class TestGradient:
    @pytest.fixture
    def loss(self) -> nn.Module:
        loss = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        loss(torch.ones(2)).sum().backward()
        return loss

    def test_the_parameter_is_named(self, loss: Any) -> None:
        assert make_check().gradient(torch.tensor(1.0), loss)
        loss[0].bias.grad[1] = torch.nan
        with pytest.raises(FloatingPointError, match=rf"non-finite gradient: 0\.bias\. {ADVICE}"):
            make_check().gradient(torch.tensor(torch.nan), loss)

    def test_a_norm_that_overflows(self, loss: Any, capsys: pytest.CaptureFixture[str]) -> None:
        check = make_check("skip")
        assert not check.gradient(torch.tensor(torch.inf), loss)
        assert capsys.readouterr().err == "update 7: non-finite gradient: its norm; skipped\n"
        assert check.skipped == 1


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match=r"on_nonfinite='ignore'.*'stop', 'skip'"):
        make_check("ignore")


class Unborn(popgym.RepeatFirstEnv):
    """Episodes of the last environment start nowhere, once many have started."""

    starts = 0

    def _start(self, layout: Any) -> Any:
        vars(self)["starts"] = self.starts + 1
        state = super()._start(layout)
        if self.starts > 6:
            state["observation"][-1] = torch.nan
        return state


def test_an_episode_that_starts_with_no_number() -> None:
    message = r"non-finite observation: 'observation' is nan in row 1 after a reset; fix the env"
    env = TransformedEnv(Unborn(2), FiniteSteps())
    for _ in range(6):
        env.reset()
    with pytest.raises(FloatingPointError, match=message):
        env.reset()


def test_in_the_loop_of_a_collector_too() -> None:
    policy = get_behavior(make_actor_critic(Unborn(2), SHMModule))
    sizes = {"num_envs": 2, "rollout_length": 300, "total_frames": 6000}
    rows = RolloutCollector(Unborn, policy, **sizes)
    with pytest.raises(FloatingPointError, match=r"'observation' is nan in row [01] after a reset"):
        list(rows)
