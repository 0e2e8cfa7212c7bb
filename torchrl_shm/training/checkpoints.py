"""Checkpoints that a crash cannot break: whole or absent, verified when they are read."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from torchrl_shm.checks import check_option
from torchrl_shm.training.files import write_atomically

Which = Literal["latest", "best"]
"""The newest checkpoint, or the one with the highest metric among those that were written."""

_NAME = re.compile(r"(checkpoint|best)-(\d{12})-([0-9a-f]{16})\.pt")


class _File(NamedTuple):
    path: Path
    kind: str
    step: int
    digest: str


class Checkpoints:
    """The newest few checkpoints of a run, and the best one.

    Each is one file, `checkpoint-<step>-<hash>.pt`, written under another name, flushed to the disk
    and renamed, so that a crash leaves it whole or absent. The hash in its name is the hash of its
    content: if a file was altered, a warning names it and the one before it is used. Files are
    read with `weights_only=True`, so they hold tensors, numbers, strings and containers of them;
    a file that would run code is refused. TorchRL's `Checkpoint` neither hashes nor flushes.

    Args:
        directory: where the files are; made by the first `save`.
        keep: how many of the newest to keep; the best is kept beside them, as `best-<step>-...`.

    Raises:
        ValueError: `keep` is not positive.

    Examples:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from torchrl_shm.training import Checkpoints
        >>> checkpoints = Checkpoints(mkdtemp(), keep=2)
        >>> for step in (100, 200, 300):
        ...     path = checkpoints.save({"weight": torch.ones(2), "step": step}, step=step)
        >>> checkpoints.steps()
        [200, 300]
        >>> checkpoints.load()["step"]
        300
    """

    def __init__(self, directory: str | Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self.directory = Path(directory)
        self.keep = keep

    def save(self, state: Mapping[str, Any], *, step: int, metric: float | None = None) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            state: tensors, numbers, strings and containers of them.
            step: its number, for example the number of frames.
            metric: the higher, the better; `None` or NaN if it is not known yet.

        Returns:
            The file.

        Raises:
            FloatingPointError: a tensor or number of `state` is not finite; nothing is written.
            OSError: the disk is full or the directory cannot be written to; the checkpoints that
                were there are still there.
        """
        _check_finite(state)
        if metric is not None and not math.isfinite(metric):
            metric = None
        buffer = io.BytesIO()
        torch.save({"state": dict(state), "metric": metric}, buffer)
        content = buffer.getvalue()
        name = f"{step:012d}-{_digest(content)}.pt"
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"checkpoint-{name}"
        write_atomically(path, content)
        for old in [file for file in self._files("checkpoint") if file.path != path]:
            if old.step == step or old.step not in self.steps()[-self.keep :]:
                old.path.unlink(missing_ok=True)
        if metric is not None and metric > self._best_metric():
            write_atomically(self.directory / f"best-{name}", content)
            for old in self._files("best"):
                if old.path.name != f"best-{name}":
                    old.path.unlink(missing_ok=True)
        return path

    def load(
        self, which: Which = "latest", *, map_location: torch.device | str = "cpu"
    ) -> dict[str, Any]:
        """Read the newest or the best whole checkpoint.

        Args:
            which: see `Which`. Where no metric is known, the best is the newest.
            map_location: device of the loaded tensors.

        Returns:
            What `save` was given.

        Raises:
            ValueError: `which` is unknown.
            FileNotFoundError: there is no checkpoint.
            RuntimeError: every checkpoint is damaged.
            pickle.UnpicklingError: a checkpoint holds more than data.

        Warns:
            UserWarning: a checkpoint is damaged and another one is used.
        """
        check_option("which", which, Which)
        files = self._files("checkpoint")[::-1]
        files = [*self._files("best")[::-1], *files] if which == "best" else files
        if not files:
            raise FileNotFoundError(
                f"{self.directory} holds no checkpoint: the run was stopped before its first one "
                "(see experiment.checkpoint_interval), or this is not the folder of a run"
            )
        damaged: list[str] = []
        for file in files:
            content = _read(file)
            if content is None:
                damaged.append(f"{file.path} is damaged: it is not what was written")
                continue
            for problem in damaged:
                warnings.warn(f"{problem}; using {file.path.name}", stacklevel=2)
            return _unpack(file.path, content, map_location)["state"]
        raise RuntimeError(
            f"no checkpoint can be used: {'. '.join(damaged)}. Move {self.directory} away to start "
            "from the beginning"
        )

    def steps(self) -> list[int]:
        """Numbers of the newest checkpoints, whole or damaged, rising."""
        return sorted({file.step for file in self._files("checkpoint")})

    def clean(self, *, after: int | None = None) -> None:
        """Remove what a crash left unfinished; only for the run that writes here.

        Args:
            after: also remove checkpoints with a higher number: they are damaged, and the run is
                about to write them again.
        """
        for path in self.directory.glob("*.part"):
            path.unlink(missing_ok=True)
        for file in [*self._files("checkpoint"), *self._files("best")]:
            if after is not None and file.step > after:
                file.path.unlink(missing_ok=True)

    def _files(self, kind: str) -> list[_File]:
        found: list[_File] = []
        for path in self.directory.glob(f"{kind}-*.pt"):
            if match := _NAME.fullmatch(path.name):
                found.append(_File(path, match[1], int(match[2]), match[3]))
        return sorted(found, key=lambda file: file.step)

    def _best_metric(self) -> float:
        for file in self._files("best"):
            if (content := _read(file)) is not None:
                with suppress(pickle.UnpicklingError):
                    return float(_unpack(file.path, content, "cpu")["metric"])
        return -math.inf


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(file: _File) -> bytes | None:
    """The content of a file; `None` where it is not what was written."""
    try:
        content = file.path.read_bytes()
    except OSError:
        return None
    return content if _digest(content) == file.digest else None


def _unpack(path: Path, content: bytes, map_location: torch.device | str) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        # without torch's own text, which advises to switch the protection off
        raise pickle.UnpicklingError(
            f"{path} holds more than data and is refused; do not use this run"
        ) from None


def _check_finite(state: Mapping[str, Any]) -> None:
    for name, value in _leaves(state):
        tensor = isinstance(value, torch.Tensor)
        if not (bool(value.isfinite().all()) if tensor else math.isfinite(value)):
            raise FloatingPointError(
                f"{name} is not finite, so it is not saved; lower the learning rate, or bound the "
                "memory with memory.clamp=100"
            )


def _leaves(value: Any, name: str = "state") -> Iterator[tuple[str, torch.Tensor | float]]:
    """All tensors and floats of nested containers, with their paths."""
    if isinstance(value, (torch.Tensor, float)):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
