"""Loggers that are there, that are not installed, and that do not exist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import Experiment, RolloutCollector, TrainingRun, loggers, make_logger


def test_csv_needs_no_logger() -> None:
    assert make_logger("csv", run_dir="run") is None
    assert make_logger(run_dir="run") is None


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"kind='mlflow'.*'csv', 'tensorboard', 'wandb'"):
        make_logger("mlflow", run_dir="run")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    message = rf'logger={kind} needs .* pip install -e "\.\[{kind}\]"'
    with pytest.raises(ModuleNotFoundError, match=message):
        make_logger(kind, run_dir="run")


@pytest.mark.parametrize(
    ("kind", "project", "options"),
    [
        ("tensorboard", "", {}),
        ("wandb", "", {}),
        ("wandb", "memories", {"wandb_kwargs": {"project": "memories"}}),
    ],
)
def test_torchrl_makes_the_others(
    monkeypatch: pytest.MonkeyPatch, kind: Any, project: str, options: dict[str, Any]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(loggers, "find_spec", lambda _: object())
    monkeypatch.setattr(loggers, "get_logger", lambda kind, **kw: calls.append((kind, kw)))
    make_logger(kind, run_dir="run", project=project)
    assert calls == [(kind, {"logger_name": "run", "experiment_name": kind, **options})]


class Lost:
    """A logger whose connection is lost at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.rows = step, list[tuple[str, int]]()

    def log_scalar(self, name: str, value: float, step: int) -> None:
        if step == self.step and name == "loss":
            raise ConnectionError("the network is down")
        self.rows.append((name, step))


def test_a_logger_that_raises_ends_no_run(tmp_path: Path) -> None:
    logger = Lost(step=8)
    experiment = Experiment(total_frames=16, num_envs=4, run_dir=str(tmp_path))
    with TrainingRun.open(
        "test", experiment, WindEnv, SHMModule, logger=lambda **options: cast(Any, logger)
    ) as run:
        policy = make_actor_critic(WindEnv(4), SHMModule).get_policy_operator()
        rows = RolloutCollector(
            WindEnv, policy, num_envs=4, rollout_length=1, total_frames=16, seed=0
        )
        run.track(policy=policy, collector=rows)

        def train() -> None:
            for _ in run.batches(rows):
                run.log({"loss": 0.0, "later": 1.0})

        message = r"Lost raised ConnectionError: .*metrics\.csv has all"
        with pytest.warns(UserWarning, match=message):
            train()
    assert [row["frames"] for row in run.folder.metrics] == [4, 8, 12, 16]
    # the rest of the row that failed is left out, and the next one is logged again
    assert ("later", 8) not in logger.rows
    assert ("later", 12) in logger.rows
