"""Loggers beside `metrics.csv`, by TorchRL."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torchrl.record.loggers import Logger, get_logger

from torchrl_shm.checks import check_option

LoggerKind = Literal["csv", "tensorboard", "wandb"]
"""`"csv"` is what every run writes; the others come on top of it."""


def make_logger(kind: LoggerKind = "csv", *, run_dir: str, project: str = "") -> Logger | None:
    """Make a TorchRL logger that receives every row of `metrics.csv`.

    Args:
        kind: see `LoggerKind`.
        run_dir: folder of the run, in which the logger keeps its files.
        project: project of a Weights & Biases run.

    Returns:
        The logger, or `None` for `"csv"`.

    Raises:
        ValueError: `kind` is unknown.
        ModuleNotFoundError: the logger's package is not installed.

    Examples:
        >>> from torchrl_shm.training import make_logger
        >>> make_logger("csv", run_dir="outputs") is None
        True
    """
    check_option("kind", kind, LoggerKind)
    if kind == "csv":
        return None
    if find_spec(kind) is None:
        raise ModuleNotFoundError(
            f'logger={kind} needs the package {kind}; install it with pip install -e ".[{kind}]"'
        )
    options: dict[str, Any] = (
        {"wandb_kwargs": {"project": project}} if kind == "wandb" and project else {}
    )
    return get_logger(kind, logger_name=run_dir, experiment_name=kind, **options)
