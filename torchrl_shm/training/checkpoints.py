"""Checkpoints that a crash cannot break: whole or absent, verified when they are read."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation, StateDictCheckpointAdapter

from torchrl_shm.checks import check_option

Which = Literal["latest", "best"]
"""The newest checkpoint, or the one with the highest metric among those that were written."""

# beside TorchRL's own files; `sha256sum --check SHA256SUMS` reads it, too
_SUMS = "SHA256SUMS"
_STATE = "components/0000-state/state.pt"
_FILES = ("manifest.json", _STATE)
_METRIC = "metric"


class Checkpoints:
    """The checkpoints of one run, the newest few and the best.

    Each is a directory in the format of TorchRL's `Checkpoint` with the hashes of its files beside
    them. It is written under another name, flushed to the disk, and renamed, so that a crash leaves
    it whole or absent. Reading compares the hashes first; a checkpoint that was altered is named in
    a warning, and the one before it is used. Tensors, numbers, strings and containers of them are
    read, and nothing else: files that would run code are refused.

    Args:
        directory: where the checkpoints are; made by the first `save`.
        keep: how many of the newest to keep; the best is kept beside them.

    Raises:
        ValueError: `keep` is not positive.

    Examples:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from torchrl_shm.training import Checkpoints
        >>> checkpoints = Checkpoints(mkdtemp(), keep=2)
        >>> for step in (100, 200, 300):
        ...     path = checkpoints.save({"weight": torch.ones(2), "step": step}, step=step)
        >>> path.name, checkpoints.steps()
        ('checkpoint-000000000300', [200, 300])
        >>> checkpoints.load()["step"]
        300
    """

    def __init__(self, directory: str | Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        # as the rotation names its paths
        self.directory = Path(directory).absolute()
        self.keep = keep

    def save(self, state: Mapping[str, Any], *, step: int, metric: float | None = None) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            state: tensors, numbers, strings and containers of them.
            step: its number, that of the frames for example; a whole checkpoint of this number
                stays as it is.
            metric: the higher, the better; `None` or NaN where nothing is known yet.

        Returns:
            The directory of the checkpoint.

        Raises:
            FloatingPointError: a tensor or number of `state` is not finite; nothing is written.
            OSError: the disk is full or the directory cannot be written to; what was there before
                is still there.
        """
        check_finite_state(state)
        path = self._path(step)
        if path.exists() and _damage(path) is None:
            return path
        stage = path.with_name(f".{path.name}.part")
        known = metric is not None and math.isfinite(metric)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            flush(self.directory.parent)
            shutil.rmtree(stage, ignore_errors=True)
            self._write(stage, state, {_METRIC: metric} if known else {})
            shutil.rmtree(path, ignore_errors=True)
            os.rename(stage, path)
            flush(self.directory)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(stage, ignore_errors=True)
            reason = _disk_error(error)
            if reason is None:
                raise
            steps = self.steps()
            kept = f"that of step {steps[-1]} is kept" if steps else "there is none before it"
            raise OSError(
                reason.errno,
                f"cannot write the checkpoint of step {step}: {reason.strerror}; {kept}. Make "
                "room or choose another folder",
                str(self.directory),
            ) from None
        self._rotation().prune()
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
        paths = self._paths()[::-1]
        if not paths:
            raise FileNotFoundError(
                f"{self.directory} holds no checkpoint: the run was stopped before its first one "
                "(see algo.checkpoint_interval), or this is not the folder of a run"
            )
        if which == "best":
            best = self._rotation().best()
            paths.sort(key=lambda path: path != best)
        damaged: list[str] = []
        for path in paths:
            damage = _damage(path)
            if damage is None:
                for problem in damaged:
                    warnings.warn(f"{problem}; using {path.name}", stacklevel=3)
                return _read(path, map_location)
            damaged.append(f"{path} is damaged: {damage}")
        raise RuntimeError(
            f"no checkpoint can be used: {'. '.join(damaged)}. Move {self.directory} away to start "
            "from the beginning"
        )

    def steps(self) -> list[int]:
        """Numbers of the checkpoints, whole or damaged, rising."""
        return [_step(path) for path in self._paths()]

    def clean(self, *, after: int | None = None) -> None:
        """Remove what a crash left unfinished; only for the run that writes here.

        Args:
            after: remove checkpoints with a higher number, too: they are damaged, and the run is
                about to write them anew.
        """
        newer = [path for path in self._paths() if after is not None and _step(path) > after]
        for path in (*self.directory.glob(".checkpoint-*"), *newer):
            shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _rotation(self) -> CheckpointRotation:
        return CheckpointRotation(self.directory, keep_last=self.keep, keep_best=(_METRIC, "max"))

    def _path(self, step: int) -> Path:
        # TorchRL's name, by which it finds them to remove
        return self.directory / f"checkpoint-{step:012d}"

    def _paths(self) -> list[Path]:
        found = self.directory.glob("checkpoint-*")
        return sorted(path for path in found if path.name.rpartition("-")[2].isdigit())

    def _write(self, stage: Path, state: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        checkpoint = Checkpoint()
        checkpoint.register("state", _Held(state), adapter=_ADAPTER)
        checkpoint.save(stage, metadata=metadata)
        sums = "".join(f"{_hash(stage / name)}  {name}\n" for name in _FILES)
        (stage / _SUMS).write_text(sums)
        for path in (*stage.rglob("*"), stage):
            flush(path)


# one file, which is read with weights_only=True
_ADAPTER = StateDictCheckpointAdapter(payload_format="torch")


class _Held:
    """A state as TorchRL's adapter takes it to save."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)

    def state_dict(self) -> dict[str, Any]:
        return self.state


def _read(path: Path, map_location: torch.device | str) -> dict[str, Any]:
    # not by TorchRL, which would also take formats that can hold code
    try:
        return torch.load(path / _STATE, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        # without torch's own text, which advises to switch the protection off
        raise pickle.UnpicklingError(
            f"{path / _STATE} holds more than data and is refused; do not use this run"
        ) from None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; `None` where every byte is as it was written."""
    try:
        lines = (path / _SUMS).read_bytes().decode().splitlines()
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except (OSError, UnicodeDecodeError) as error:
        return f"{_SUMS} cannot be read ({error})"
    expected = {line[66:]: line[:64] for line in lines}
    if sorted(expected) != sorted(_FILES) or len(lines) != len(_FILES):
        return f"{_SUMS} was altered"
    for name in _FILES:
        try:
            found = _hash(path / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected[name]:
            return f"{name} is not what was written"
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError | RuntimeError) -> OSError | None:
    """The error of the disk; torch's writer turns it into a RuntimeError that does not name it."""
    if isinstance(error, OSError):
        return error
    if "file write failed" in str(error) or "unexpected pos" in str(error):
        return OSError(errno.ENOSPC, "the disk is full, or a quota or limit is reached")
    return None


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def check_finite_state(state: Mapping[str, Any]) -> None:
    """Raise FloatingPointError with the name of the first tensor or number that is not finite."""
    for name, value in _leaves(state):
        tensor = isinstance(value, torch.Tensor)
        if not (bool(value.isfinite().all()) if tensor else math.isfinite(value)):
            raise FloatingPointError(
                f"{name} is not finite, so it is not saved; lower the learning rate, or bound the "
                "memory with memory.clamp=100"
            )


def _leaves(value: Any, name: str = "state") -> Iterator[tuple[str, torch.Tensor | float]]:
    """All tensors and floats of nested containers, with the way to them."""
    if isinstance(value, (torch.Tensor, float)):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
