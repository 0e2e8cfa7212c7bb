"""What a folder says of its run, for tools that look at many of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The `summary.json` of a run, or `None` where it is not finished."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def last_row(folder: Path) -> dict[str, str] | None:
    """The last row of `metrics.csv`, or `None` where there is none yet."""
    path = folder / "metrics.csv"
    if not path.exists():
        return None
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows else None


def describe(result: dict[str, Any]) -> str:
    """The scores of a finished run in a few words."""
    success = result["eval_success"]
    text = f"return {float(result['eval_return']):.2f}"
    # empty in a file
    return text if success in (None, "") else f"{text}, success {float(success):.2f}"


def progress(folder: Path) -> str:
    """How far an unfinished run has come."""
    row = last_row(folder)
    return "-" if row is None else f"at frame {int(float(row['frames'])):,}"
