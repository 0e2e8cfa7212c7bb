"""Loggers beside `metrics.csv`, by TorchRL."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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


def log_row(logger: Logger, row: Mapping[str, float], step: int) -> None:
    """Give a logger a row; what it raises ends no run, which has the row in `metrics.csv`.

    Args:
        logger: the logger; where it raises, it is given the rest of the row no more, and the next
            row again.
        row: numbers by name.
        step: frames so far.

    Warns:
        UserWarning: it raised.
    """
    try:
        for key, value in row.items():
            logger.log_scalar(key, value, step=step)
    except Exception as error:
        # the same words each time, of which Python shows the first
        warnings.warn(
            f"{type(logger).__name__} raised {type(error).__name__}: {error}; the run goes on, and "
            "metrics.csv has all rows",
            stacklevel=3,
        )
