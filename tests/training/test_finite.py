"""The first number that is not finite is named, and reaches nothing that lasts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from torchrl_shm.training import FiniteCheck
from torchrl_shm.training.finite import describe_nonfinite

ADVICE = r"It did not reach the parameters; lower algo\.learning_rate, bound .* memory\.clamp=100"
BAD = [float("nan"), float("inf"), -float("inf")]


def make_check(option: Any = "stop", **parts: Any) -> FiniteCheck:
    parts = {"policy": nn.Identity(), "loss": nn.Identity()} | parts
    check = FiniteCheck(parts["policy"], parts["loss"], option)
    check.update = 7
    return check


def make_batch(rows: int = 3, steps: int = 4) -> TensorDict:
    """Whole numbers, flags and an empty entry are looked at by nobody."""
    shape = (rows, steps)
    return TensorDict(
        {
            "observation": torch.zeros(*shape, 2),
            "action": torch.ones(shape, dtype=torch.int64),
            "memory_lean": torch.zeros(*shape, 5),
            "nothing": torch.zeros(*shape, 0),
            "next": {
                "reward": torch.zeros(*shape, 1),
                "done": torch.zeros(*shape, 1, dtype=torch.bool),
            },
        },
        shape,
    )


class TestRows:
    def test_all_is_well(self) -> None:
        check, batch = make_check(), make_batch()
        assert check.rows(batch) is batch
        assert check.skipped == 0

    @pytest.mark.parametrize("value", BAD)
    @pytest.mark.parametrize("key", ["observation", ("next", "reward")])
    def test_name_row_and_step(self, key: Any, value: float) -> None:
        batch = make_batch()
        batch[key][1, 2, -1] = value
        # later, and in an earlier row
        batch[key][0, 3] = torch.nan
        match = rf"update 7: non-finite data: .*{key[-1] if isinstance(key, tuple) else key}.* is "
        with pytest.raises(FloatingPointError, match=f"{match}{value} in row 1, step 2.*{ADVICE}"):
            make_check().rows(batch)

    def test_the_earliest_of_several_entries(self) -> None:
        batch = make_batch()
        batch["observation"][0, 3] = torch.nan
        batch["next", "reward"][2, 1] = torch.inf
        with pytest.raises(FloatingPointError, match=r"'reward'.* is inf in row 2, step 1\."):
            make_check().rows(batch)

    def test_bad_rows_are_left_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        check, batch = make_check("skip"), make_batch()
        batch["observation"] += torch.arange(3.0).view(3, 1, 1)
        batch["next", "reward"][1, 2] = torch.nan
        left = check.rows(batch)
        assert left["observation"][:, 0, 0].tolist() == [0, 2]
        assert bool(left["next", "reward"].isfinite().all())
        assert check.skipped == 1
        err = capsys.readouterr().err
        assert err.startswith("update 7: non-finite data: ")
        assert err.endswith("is nan in row 1, step 2; skipped\n")

    def test_no_row_is_left(self) -> None:
        batch = make_batch()
        batch["observation"][:, 0] = torch.nan
        with pytest.raises(FloatingPointError, match="no row of update 7 is finite"):
            make_check("skip").rows(batch)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_memory_that_grows(self, sign: int, recwarn: pytest.WarningsRecorder) -> None:
        check, batch = make_check(), make_batch()
        batch["memory_lean"][1, 0, 3] = sign * 1e6
        check.rows(batch)
        assert not recwarn.list
        batch["memory_lean"][1, 0, 3] = sign * 3.5e6
        with pytest.warns(
            UserWarning, match=r"update 7: 'memory' has grown to 3\.5e\+06; bound it"
        ):
            check.rows(batch)
        # once
        check.rows(batch)

    def test_memory_at_the_start_of_a_row(self) -> None:
        batch = make_batch()
        batch["memory_lean"][2, 0, 3] = torch.nan
        with pytest.raises(
            FloatingPointError, match="'memory' is not finite at the start of row 2"
        ):
            make_check().rows(batch)


class Scale(nn.Module):
    """Makes of 1 what it is told to."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def make_policy(embedding: float = 1, features: float = 1, loc: float = 1) -> TensorDictSequential:
    chain = {
        ("observation", "embedding"): embedding,
        ("embedding", "features"): features,
        ("features", "loc"): loc,
    }
    return TensorDictSequential(
        *(TensorDictModule(Scale(factor), [a], [b]) for (a, b), factor in chain.items())
    )


class TestLoss:
    @pytest.mark.parametrize("value", BAD)
    @pytest.mark.parametrize(
        ("factors", "named"),
        [
            ({"embedding": 3e38}, "'embedding'"),
            ({"features": 3e38}, "'features'"),
            ({"loc": 3e38}, "'loc'"),
        ],
    )
    def test_where_it_began(self, value: float, factors: dict[str, float], named: str) -> None:
        batch = make_batch()
        batch["observation"][:] = 1
        batch["observation"][1, 2] = 10
        check = make_check(policy=make_policy(**factors))
        match = f"update 7: non-finite loss: {named} is inf in row 1, step 2.*{ADVICE}"
        with pytest.raises(FloatingPointError, match=match):
            check.loss_is_finite(torch.tensor(value), batch)

    def test_what_the_policy_does_not_make(self) -> None:
        batch = make_batch()
        batch["advantage"] = torch.zeros(3, 4, 1)
        batch["advantage"][2, 1] = torch.nan
        check = make_check(policy=make_policy())
        with pytest.raises(FloatingPointError, match="'advantage' is nan in row 2, step 1"):
            check.loss_is_finite(torch.tensor(torch.nan), batch)
        with pytest.raises(FloatingPointError, match="the loss itself, of finite policy outputs"):
            check.loss_is_finite(torch.tensor(torch.nan), make_batch())

    def test_looking_draws_nothing(self) -> None:
        """A run that skips a minibatch goes on with the generator as it was."""

        class Draws(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + torch.rand(x.shape)

        policy = TensorDictModule(Draws(), ["observation"], ["features"])
        before = torch.get_rng_state()
        batch = make_batch()
        kept = batch.clone()
        check = make_check("skip", policy=policy)
        assert not check.loss_is_finite(torch.tensor(torch.nan), batch)
        assert torch.equal(torch.get_rng_state(), before)
        assert set(batch.keys()) == set(kept.keys())

    def test_skip(self, capsys: pytest.CaptureFixture[str]) -> None:
        check = make_check("skip", policy=make_policy())
        assert check.loss_is_finite(torch.tensor(1.0), make_batch())
        assert not check.loss_is_finite(torch.tensor(torch.inf), make_batch())
        assert check.skipped == 1
        assert "update 7: non-finite loss: the loss itself" in capsys.readouterr().err


class TestGradient:
    def test_the_first_parameter(self) -> None:
        loss = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        loss(torch.ones(2)).sum().backward()
        check = make_check(loss=loss)
        norm = nn.utils.get_total_norm([p.grad for p in loss.parameters() if p.grad is not None])
        assert check.gradient_is_finite(norm)
        bias: Any = loss[0].bias
        bias.grad[1] = torch.nan
        with pytest.raises(FloatingPointError, match=rf"non-finite gradient: 0\.bias\. {ADVICE}"):
            check.gradient_is_finite(torch.tensor(torch.nan))

    def test_a_norm_that_overflows(self, capsys: pytest.CaptureFixture[str]) -> None:
        check = make_check("skip")
        assert not check.gradient_is_finite(torch.tensor(torch.inf))
        assert capsys.readouterr().err == "update 7: non-finite gradient: its norm; skipped\n"
        assert check.skipped == 1


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match=r"on_nonfinite='ignore'.*'stop', 'skip'"):
        make_check("ignore")


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2, 5)])
def test_describe(shape: tuple[int, ...]) -> None:
    value = torch.zeros(shape)
    value[2, 1] = -torch.inf
    value[1, 3] = torch.nan
    assert describe_nonfinite("x", value) == "'x' is -inf in row 2, step 1"
    if len(shape) > 2:
        of_a_step = value[:, 3]
        assert describe_nonfinite("x", of_a_step, 3) == "'x' is nan in row 1, step 3"
