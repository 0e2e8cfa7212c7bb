"""REINFORCE and GRPO as a user runs them, and what their losses get."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from tests.recipes._helpers import (
    FRAMES,
    FRAMES_PER_UPDATE,
    TINY,
    UPDATES,
    Result,
    command,
    fitting,
    read_metrics,
    saved_state,
    train,
    without_time,
)
from torchrl_shm import SHMModule
from torchrl_shm.envs.popgym import PositionOnlyCartPoleEnv
from torchrl_shm.training import LeanClipPPOLoss, RolloutCollector

pytestmark = pytest.mark.usefixtures("elsewhere")

RECIPES = ("reinforce_shm", "grpo_shm")
COLUMNS = {
    "reinforce_shm": (
        "update", "frames", "return", "success", "learning_rate", "ended", "grad_norm",
        "loss_actor", "loss_value", "seconds", "frames_per_second",
    ),
    "grpo_shm": (
        "update", "frames", "return", "success", "max_ratio", "learning_rate", "compared",
        "spread", "mixed_groups", "loss_objective", "entropy", "kl_approx", "clip_fraction",
        "grad_norm", "seconds", "frames_per_second",
    ),
}  # fmt: skip


def run(recipe: str, folder: Path, *arguments: str) -> Result:
    # the episodes that count have to end
    options = [x for x in fitting(recipe, TINY) if not x.startswith("env.max_steps")]
    return command(
        f"{recipe}.py", *options, "env.max_steps=15", *arguments, f"hydra.run.dir={folder}"
    )


@pytest.mark.parametrize("recipe", RECIPES)
class TestRun:
    def test_what_is_left(self, recipe: str, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        result = run(recipe, folder)
        assert (result.code, result.stderr) == (0, "")
        assert result.summary == json.loads((folder / "summary.json").read_text())
        assert result.summary["frames"] == FRAMES
        rows = read_metrics(folder)
        assert tuple(rows[0]) == COLUMNS[recipe]
        assert [int(row["frames"]) for row in rows] == [
            FRAMES_PER_UPDATE * (i + 1) for i in range(UPDATES)
        ]
        assert all(math.isfinite(float(row[name])) for row in rows for name in COLUMNS[recipe])
        assert saved_state(folder)["updates"] == UPDATES
        # repeated, and with another seed
        again, other = tmp_path / "again", tmp_path / "other"
        run(recipe, again)
        run(recipe, other, "experiment.seed=1")
        assert without_time(again) == without_time(folder)
        assert without_time(other) != without_time(folder)

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param(("memory=mlp",), marks=pytest.mark.slow),
            pytest.param(("memory=gru",), marks=pytest.mark.slow),
            ("network.shared_memory=false",),
        ],
    )
    def test_other_networks(self, recipe: str, options: tuple[str, ...], tmp_path: Path) -> None:
        result = run(recipe, tmp_path / "run", *options)
        assert (result.code, result.stderr) == (0, "")

    @pytest.mark.usefixtures("forked_workers")
    def test_collecting_in_a_worker(self, recipe: str, tmp_path: Path) -> None:
        workers = ("collector=multi_sync", "collector.num_workers=1")
        result = run(recipe, tmp_path / "run", *workers)
        assert result.code == 0, result.stderr
        assert len(read_metrics(tmp_path / "run")) == UPDATES

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
    def test_compiled(self, recipe: str, tmp_path: Path) -> None:
        """Up to rounding, it learns the same."""
        run(recipe, tmp_path / "eager")
        result = run(recipe, tmp_path / "compiled", "experiment.compile=all")
        assert result.code == 0
        assert "is not compiled" not in result.stderr
        compiled, eager = (read_metrics(tmp_path / x) for x in ("compiled", "eager"))
        for ours, theirs in zip(compiled, eager, strict=True):
            for name in set(COLUMNS[recipe]) - {"seconds", "frames_per_second"}:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-3), name


class Recording(RolloutCollector):
    """Keeps what it has collected."""

    batches: list[TensorDictBase]

    def __iter__(self) -> Iterator[TensorDictBase]:
        for batch in super().__iter__():
            self.batches.append(batch.clone())
            yield batch


class Passes(SHMModule):
    """Counts passes over sequences, with and without gradients."""

    counted: list[bool]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.recurrent_mode:
            self.counted.append(torch.is_grad_enabled())
        return super().forward(tensordict)


@pytest.fixture
def recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[TensorDictBase], list[TensorDictBase], list[bool]]:
    """Batches as they were collected, what the losses got, and the passes of the memory."""
    from torchrl.objectives import ReinforceLoss

    batches: list[Any] = []
    seen: list[Any] = []
    counted: list[bool] = []
    for kind in (ReinforceLoss, LeanClipPPOLoss):
        forward = kind.forward

        def record(self: Any, tensordict: TensorDictBase, forward: Any = forward) -> Any:
            seen.append(tensordict.clone())
            return forward(self, tensordict)

        monkeypatch.setattr(kind, "forward", record)
    monkeypatch.setattr(Recording, "batches", batches, raising=False)
    monkeypatch.setattr(Passes, "counted", counted, raising=False)
    return batches, seen, counted


# episodes of 8 to 30 steps, of which batches of 20 cut some off
CART_POLE: dict[str, Any] = {
    "env": partial(PositionOnlyCartPoleEnv, max_steps=30), "collector": Recording,
    "memory": Passes, "num_test_episodes": 2,
}  # fmt: skip


class TestReinforce:
    @pytest.mark.parametrize("baseline", [True, False])
    def test_returns(self, tmp_path: Path, recorded: Any, baseline: bool) -> None:
        """By hand; what goes on beyond the batch does not count."""
        options = {**CART_POLE, "gamma": 0.9, "baseline": baseline}
        train(tmp_path, "reinforce_shm", **options)
        batches, seen, counted = recorded
        assert len(batches) == len(seen) == UPDATES
        scales: list[float] = []
        for batch, got in zip(batches, seen, strict=True):
            reward, done = batch["next", "reward"], batch["next", "done"]
            expected, counts = torch.zeros_like(reward), torch.zeros_like(done)
            for row in range(8):
                ahead, ended = 0.0, False
                for t in reversed(range(20)):
                    over = bool(done[row, t])
                    ahead = float(reward[row, t]) + (0.0 if over else 0.9 * ahead)
                    ended = ended or over
                    expected[row, t], counts[row, t] = ahead, ended
            counts = counts.squeeze(-1)
            assert torch.equal(got["collector", "mask"], counts)
            found = got["value_target"][counts] / expected[counts]
            # up to the unit
            torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-4, atol=0)
            scales.append(float(found[0]))
            assert torch.equal(got["advantage"], got["value_target"]) != baseline
        mask = torch.stack([got["collector", "mask"] for got in seen])
        assert 0.3 < float(mask.double().mean()) < 1
        assert len(set(scales)) == UPDATES
        # one pass learns; the baseline takes another one
        assert counted == [False, True] * UPDATES if baseline else [True] * UPDATES

    def test_a_batch_without_an_end_changes_nothing(self, tmp_path: Path) -> None:
        """And the next one is learned from."""
        train(tmp_path, "reinforce_shm", env=partial(PositionOnlyCartPoleEnv, max_steps=200),
              rollout_length=3, total_frames=24 * 15, num_test_episodes=2)  # fmt: skip
        rows = read_metrics(tmp_path)
        assert (rows[0]["ended"], rows[0]["grad_norm"]) == ("0.0", "0.0")
        ended = [float(row["ended"]) > 0 for row in rows]
        assert ended == [float(row["grad_norm"]) > 0 for row in rows]
        assert any(ended)

    def test_entropy_bonus(self, tmp_path: Path) -> None:
        for coeff in (0.0, 0.5):
            train(tmp_path / str(coeff), "reinforce_shm", entropy_coeff=coeff)
        plain, curious = (read_metrics(tmp_path / str(coeff)) for coeff in (0.0, 0.5))
        # episodes end in the second update and in the third
        found = [
            one["loss_actor"] == other["loss_actor"]
            for one, other in zip(plain, curious, strict=True)
        ]
        assert found[:3] == [True, True, False]


class TestGRPO:
    @pytest.mark.parametrize("credit", ["episode", "step"])
    def test_advantages(self, tmp_path: Path, recorded: Any, credit: str) -> None:
        """By hand, of episodes that end early, late, and not at all in their batch."""
        options = {"epochs": 1, "sequences_per_minibatch": 8, "gamma": 0.9, "credit": credit}
        train(tmp_path, "grpo_shm", **CART_POLE, **options)
        batches, seen, counted = recorded
        assert len(batches) == len(seen) == UPDATES
        for batch, got in zip(batches, seen, strict=True):
            assert batch["is_init"][:, 0].all()
            # the same place in a group; which it is shows in what the others do not share
            first = batch["observation"][:, 0]
            assert torch.equal(first[0::4], first[3::4])
            assert not torch.equal(first[0], first[4])
            lengths = batch["next", "done"].squeeze(-1).long().argmax(1) + 1
            lengths[~batch["next", "done"].any(1).squeeze(-1)] = 20
            counts = torch.arange(20) < lengths[:, None]
            reward, ahead = batch["next", "reward"].squeeze(-1) * counts, torch.zeros(8)
            returns = torch.zeros(8, 20)
            for t in reversed(range(20)):
                returns[:, t] = ahead = reward[:, t] + 0.9 * ahead
            expected = (returns if credit == "step" else returns[:, :1].expand(8, 20)).view(
                2, 4, 20
            )
            expected = expected - expected.mean(1, keepdim=True)
            spread = expected.flatten(1).std(1, correction=0).view(2, 1, 1)
            expected = (expected / (spread + 1e-6)).view(8, 20)
            assert expected.abs().max() > 0.5
            # minibatches are shuffled: rows by what was seen, after steps that nobody repeats
            order = [
                next(i for i in range(8) if torch.equal(row, batch["action_log_prob"][i]))
                for row in got["action_log_prob"]
            ]
            assert sorted(order) == list(range(8))
            assert torch.equal(got["collector", "mask"], counts[order])
            found = got["advantage"].squeeze(-1)
            torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5)
        assert counted == [True] * UPDATES

    @pytest.mark.parametrize("kl_coeff", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
    def test_first_ratio(self, tmp_path: Path, kl_coeff: float) -> None:
        """Whatever was learned before, the loss begins with the policy that acted."""
        train(tmp_path, "grpo_shm", kl_coeff=kl_coeff, learning_rate=1e-2)
        rows = read_metrics(tmp_path)
        assert all(abs(float(row["max_ratio"]) - 1) <= 1e-4 for row in rows)
        assert all(float(row["kl_approx"]) != 0 for row in rows)

    def test_the_critic_is_not_touched(self, tmp_path: Path) -> None:
        train(tmp_path / "short", "grpo_shm", total_frames=1)
        train(tmp_path / "long", "grpo_shm")
        short, long = (saved_state(tmp_path / x)["operator"] for x in ("short", "long"))
        for name, value in short.items():
            assert torch.equal(value, long[name]) == name.startswith("module.2."), name

    def test_a_memory_that_does_not_repeat_what_acted(self, tmp_path: Path) -> None:
        options = {"memory": DropsGates, "learning_rate": 1e-2, "total_frames": 3200}
        with pytest.raises(RuntimeError, match=r"at most .* not 1: .*check_memory"):
            train(tmp_path, "grpo_shm", **options)


class DropsGates(SHMModule):
    """Draws again in recurrent mode."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.recurrent_mode:
            tensordict.pop("theta_index", None)
        return super().forward(tensordict)


class TestMistakes:
    """Each is answered before the first step, by one line."""

    @pytest.mark.parametrize(
        ("override", "answer"),
        [
            ("algo.group_size=3", "algo.group_size=3 must divide experiment.num_envs=8"),
            *(
                pytest.param(*x, marks=pytest.mark.slow)
                for x in (
                    ("algo.group_size=1", "algo.group_size must be at least 2, got 1"),
                    ("algo.spread_eps=0", "algo.spread_eps=0.0 must be positive"),
                    ("algo.credit=token", "'episode' or 'step'"),
                    ("algo.kl_coeff=-1", "algo.kl_coeff=-1.0 must not be negative"),
                )
            ),
            ("experiment.on_nonfinite=skip", "groups need all of theirs; use stop"),
            (
                "collector=multi_sync collector.num_workers=4 algo.group_size=4",
                "group_size=4 must divide the 2 environments of each of 4 workers",
            ),
        ],
    )
    def test_grpo(self, tmp_path: Path, override: str, answer: str) -> None:
        result = run("grpo_shm", tmp_path, *override.split())
        assert (result.code, result.stdout) == (2, "")
        assert answer in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "metrics.csv").exists()

    def test_a_task_without_layouts(self, tmp_path: Path) -> None:
        pytest.importorskip("gymnasium", reason="comes with the extra popgym")
        result = command(
            "grpo_shm.py", "env=gym", "experiment.num_envs=4", "algo.group_size=2",
            "algo.sequences_per_minibatch=2", f"hydra.run.dir={tmp_path}",
        )  # fmt: skip
        assert result.code == 2
        assert result.stderr.count("\n") == 1
        assert "group_size=2 needs a task that draws layouts" in result.stderr

    @pytest.mark.parametrize(
        ("override", "answer"),
        [
            ("algo.gamma=2", "algo.gamma=2.0 must be between 0 and 1"),
            ("algo.epochs=2", "algo.epochs is unknown"),
            ("algo=grpo", "algo=grpo is unknown; choose one of reinforce"),
        ],
    )
    def test_reinforce(self, tmp_path: Path, override: str, answer: str) -> None:
        result = run("reinforce_shm", tmp_path, override)
        assert (result.code, result.stdout) == (2, "")
        assert answer in result.stderr
        assert not (tmp_path / "metrics.csv").exists()
