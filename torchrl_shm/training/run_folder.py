"""The folder of a run: metrics, checkpoints, summary, and a lock for the process that writes."""

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
from typing import Any

from torchrl_shm.training.checkpoints import Checkpoints
from torchrl_shm.training.files import cannot_write, write_atomically

try:
    import fcntl
except ImportError:  # not on Windows, where two processes in one folder are not noticed
    fcntl = None


class RunFolder:
    """The files of a run: `metrics.csv`, `checkpoints/`, `summary.json`, `config.yaml`.

    Args:
        path: the folder.
        keep_checkpoints: how many of the newest checkpoints to keep, beside the best.

    Attributes:
        path: the folder.
        checkpoints: its `Checkpoints`.
        metrics: the rows of `metrics.csv` that this process wrote or restored.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.training import RunFolder
        >>> folder = RunFolder(mkdtemp())
        >>> folder.log({"frames": 100, "return": 1.5})
        >>> folder.metrics
        [{'frames': 100, 'return': 1.5}]
    """

    def __init__(self, path: str | Path, *, keep_checkpoints: int = 3) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep=keep_checkpoints)
        self.metrics: list[dict[str, float]] = []
        self._text = ""
        self._release: Callable[[], object] | None = None

    @classmethod
    def create(
        cls, path: str | Path, *, resume: bool = False, keep_checkpoints: int = 3
    ) -> RunFolder:
        """Make the folder of a new run, or open that of an old one, and lock it.

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
        folder.lock()
        if not resume:
            for name in ("checkpoints", "summary.json"):
                if (folder.path / name).exists():
                    folder.close()
                    raise FileExistsError(
                        f"{folder.path / name} is of another run, which would be overwritten; "
                        f"continue it with experiment.resume={folder.path}, choose another "
                        "hydra.run.dir=..., or move that run away"
                    )
        folder.checkpoints.clean()
        return folder

    def lock(self) -> None:
        """Keep other processes out; the lock ends with the process, however that ends.

        Raises:
            RuntimeError: another process is running there.
        """
        if fcntl is None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            # `is_running` of another process holds the lock for a moment
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
                f"{self.path} is in use: a run is writing there; wait for it, or stop it"
            ) from None
        except OSError:
            # file systems without locks
            os.close(descriptor)
            return
        self._release = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Release the lock."""
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
        names = list(self.metrics[0] if self.metrics else row)
        line = io.StringIO()
        writer = csv.writer(line, lineterminator="\n")
        if not self.metrics:
            writer.writerow(names)
        writer.writerow([row[name] for name in names])
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "metrics.csv"
        try:
            with open(path, "a" if self.metrics else "w", newline="") as file:
                file.write(line.getvalue())
        except OSError as error:
            raise cannot_write(path, error) from None
        self.metrics.append(dict(row))
        self._text += line.getvalue()

    @property
    def metrics_csv(self) -> str:
        """The text of `metrics.csv`, to be saved in a checkpoint."""
        return self._text

    def restore_metrics(self, text: str) -> None:
        """Write `metrics.csv` as it was at a checkpoint; rows after that are removed.

        Args:
            text: what `metrics_csv` was.
        """
        write_atomically(self.path / "metrics.csv", text.encode())
        self._text = text
        table = csv.DictReader(io.StringIO(text))
        self.metrics = [{key: _number(value) for key, value in row.items()} for row in table]

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
        write_atomically(self.path / "summary.json", text.encode())


def is_running(path: str | Path) -> bool:
    """Whether a process holds the folder of a run.

    Args:
        path: the folder.

    Returns:
        Also true if the folder cannot be opened; false if the file system has no locks.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.training.run_folder import RunFolder, is_running
        >>> folder = RunFolder.create(mkdtemp())
        >>> is_running(folder.path)
        True
        >>> folder.close()
        >>> is_running(folder.path)
        False
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        # shared, so that any number of processes can ask at once
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # file systems without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
