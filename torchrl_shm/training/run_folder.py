"""The folder of a run: metrics, checkpoints, summary; whole or absent, but the last metrics."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from torchrl_shm.training.checkpoints import Checkpoints, Which, flush

try:
    import fcntl
except ImportError:  # not on Windows, where two processes in one folder are not noticed
    fcntl = None


class RunFolder:
    """Writes what a run leaves behind.

    Files: `metrics.csv` (a flushed row per update), `checkpoints/`, `summary.json`.

    Args:
        path: the folder; made if it is missing.
        keep_checkpoints: how many of the newest checkpoints to keep, beside the best.

    Raises:
        OSError: the folder cannot be made or written to.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.training import RunFolder
        >>> run = RunFolder(mkdtemp())
        >>> run.log({"frames": 100, "return": 1.5})
        >>> run.metrics
        [{'frames': 100, 'return': 1.5}]
    """

    def __init__(self, path: str | Path, *, keep_checkpoints: int = 3) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep=keep_checkpoints)
        self.metrics: list[dict[str, float]] = []
        self._lines: list[str] = []
        self._release: Callable[[], object] | None = None

    @classmethod
    def create(
        cls, path: str | Path, *, resume: bool = False, keep_checkpoints: int = 3
    ) -> RunFolder:
        """Make the folder of a new run, or take up that of an old one; no other run may use it.

        Args:
            path: the folder; made if it is missing.
            resume: whether the folder may hold a run.
            keep_checkpoints: how many of the newest checkpoints to keep, beside the best.

        Returns:
            The folder, without metrics.

        Raises:
            FileExistsError: the folder holds the results of another run, and `resume` is false.
            RuntimeError: another process is running there.
            OSError: the folder cannot be made or written to.
        """
        folder = cls(path, keep_checkpoints=keep_checkpoints)
        folder.path.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.path, os.W_OK):
            raise PermissionError(
                f"{folder.path} cannot be written to; choose another hydra.run.dir=..."
            )
        folder._lock()
        if not resume:
            for name in ("checkpoints", "summary.json"):
                if (folder.path / name).exists():
                    raise FileExistsError(
                        f"{folder.path / name} is of another run, which would be overwritten; go "
                        f"on with it by resume={folder.path}, choose another hydra.run.dir=..., or "
                        "move that run away"
                    )
        folder.checkpoints.clean()
        return folder

    def _lock(self) -> None:
        """Keep other processes out; the lock goes with the process, however it ends."""
        if fcntl is None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            # one that only looks whether a run is going on holds it for a moment
            for patience in (0.05, 0.2, None):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if patience is None:
                        raise
                    time.sleep(patience)
        except BlockingIOError:
            os.close(descriptor)
            raise RuntimeError(
                f"{self.path} is in use: a run is going on there; wait for it, or stop it"
            ) from None
        except OSError:
            # file systems without locks
            os.close(descriptor)
            return
        self._release = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Let others use the folder."""
        if self._release is not None:
            self._release()

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row to `metrics.csv` and flush it; the first row names the columns.

        Args:
            row: value by column, the same columns every time.

        Raises:
            ValueError: the columns differ from those of the first row.
            OSError: the disk is full or the folder cannot be written to.
        """
        if self.metrics and row.keys() != self.metrics[0].keys():
            raise ValueError(f"columns {list(row)} differ from {list(self.metrics[0])}")
        lines: list[str] = [] if self.metrics else [_line(list(row))]
        names = self.metrics[0] if self.metrics else row
        lines.append(_line([row[name] for name in names]))
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "metrics.csv"
        try:
            with open(path, "a" if self.metrics else "w", newline="") as file:
                file.write("".join(lines))
        except OSError as error:
            raise _cannot_write(path, error) from None
        self.metrics.append(dict(row))
        self._lines += lines

    def metrics_csv(self, rows: int) -> str:
        """What `metrics.csv` holds up to a row, to be saved in a checkpoint.

        Args:
            rows: number of rows.

        Returns:
            The text, with the line of names.
        """
        return "".join(self._lines[: rows + 1]) if rows else ""

    def restore_metrics(self, text: str) -> None:
        """Make `metrics.csv` what it was; rows after that are cut.

        Args:
            text: what `metrics_csv` returned.
        """
        write_atomically(self.path / "metrics.csv", lambda file: file.write(text.encode()))
        self._lines = text.splitlines(keepends=True)
        table = csv.DictReader(io.StringIO(text))
        self.metrics = [{key: _number(value) for key, value in row.items()} for row in table]

    def load_checkpoint(
        self, which: Which = "latest", *, map_location: torch.device | str = "cpu"
    ) -> dict[str, Any]:
        """Read a checkpoint; see `Checkpoints.load`.

        Args:
            which: the newest or the best.
            map_location: device of the loaded tensors.

        Returns:
            What was saved.
        """
        return self.checkpoints.load(which, map_location=map_location)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `summary.json` holds; `None` while the run is not finished."""
        with suppress(FileNotFoundError):
            return json.loads((self.path / "summary.json").read_text())
        return None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`.

        Args:
            summary: the final results.
        """
        text = json.dumps(dict(summary), indent=2) + "\n"
        write_atomically(self.path / "summary.json", lambda file: file.write(text.encode()))


def is_running(path: str | Path) -> bool:
    """Whether a process holds the folder of a run.

    Args:
        path: the folder.

    Returns:
        True, too, where the folder is somebody else's; false where the file system knows no locks.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.training import RunFolder
        >>> from torchrl_shm.training.run_folder import is_running
        >>> run = RunFolder.create(mkdtemp())
        >>> is_running(run.path)
        True
        >>> run.close()
        >>> is_running(run.path)
        False
    """
    try:
        folder = RunFolder(path)
        folder._lock()  # pyright: ignore[reportPrivateUsage]
        folder.close()
    except (RuntimeError, OSError):
        # what cannot be opened is somebody else's
        return True
    return False


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: the file.
        write: called with the open temporary file.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        # a link that somebody left there would lead out of the folder
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"cannot write {path.name}: {error.strerror or error}; make room, or choose another folder",
        str(path.parent),
    )


def _line(values: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
