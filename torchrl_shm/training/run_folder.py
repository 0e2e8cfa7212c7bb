"""The folder of a run: metrics, checkpoints, summary. Nothing in it is ever half-written."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch


class RunFolder:
    """Writes what a run leaves behind.

    Files: `metrics.csv` (a flushed row per update), `checkpoint.pt`, `summary.json`.

    Args:
        path: the folder; made if it is missing.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.training import RunFolder
        >>> run = RunFolder(mkdtemp())
        >>> run.log({"frames": 100, "return": 1.5})
        >>> run.metrics
        [{'frames': 100, 'return': 1.5}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics: list[dict[str, float]] = []

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: the folder; made if it is missing.

        Returns:
            The folder, without metrics.

        Raises:
            FileExistsError: the folder holds the results of another run.
        """
        folder = cls(path)
        for name in ("checkpoint.pt", "summary.json"):
            if (folder.path / name).exists():
                raise FileExistsError(
                    f"{folder.path / name} is of another run, which would be overwritten; choose "
                    "another hydra.run.dir=..., or move that run away"
                )
        return folder

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row to `metrics.csv` and flush it; the first row names the columns.

        Args:
            row: value by column, the same columns every time.

        Raises:
            ValueError: the columns differ from those of the first row.
        """
        if self.metrics and row.keys() != self.metrics[0].keys():
            raise ValueError(f"columns {list(row)} differ from {list(self.metrics[0])}")
        first = not self.metrics
        self.metrics.append(dict(row))
        with open(self.path / "metrics.csv", "w" if first else "a", newline="") as file:
            writer = csv.DictWriter(file, list(self.metrics[0]), lineterminator="\n")
            if first:
                writer.writeheader()
            writer.writerow(row)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace `checkpoint.pt`.

        Args:
            state: tensors, numbers, strings and containers of them.

        Raises:
            FloatingPointError: a tensor is not finite; the file stays as it was.
        """
        for name, tensor in _tensors(state):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise FloatingPointError(
                    f"{name} is not finite, so the checkpoint is not replaced; lower the learning "
                    "rate, or bound the memory with memory.clamp=100"
                )
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.path / "checkpoint.pt", lambda file: file.write(buffer.getbuffer()))

    def load_checkpoint(self, map_location: torch.device | str = "cpu") -> dict[str, Any]:
        """Read `checkpoint.pt`; files that hold anything but data are refused.

        Args:
            map_location: device of the loaded tensors.

        Returns:
            What `save_checkpoint` was given.

        Raises:
            FileNotFoundError: the run has no checkpoint.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: the run was stopped before its first checkpoint (see "
                "algo.checkpoint_interval), or this is not the folder of a run"
            )
        return torch.load(path, map_location=map_location, weights_only=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`.

        Args:
            summary: the final results.
        """
        text = json.dumps(dict(summary), indent=2) + "\n"
        write_atomically(self.path / "summary.json", lambda file: file.write(text.encode()))


def _tensors(value: Any, name: str = "state") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested containers, with the way to them."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}[{i}]")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: the file.
        write: called with the open temporary file.
    """
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
