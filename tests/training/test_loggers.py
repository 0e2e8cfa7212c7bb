"""Loggers that are there, that are not installed, and that do not exist."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from torchrl_shm.training import loggers, make_logger


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
