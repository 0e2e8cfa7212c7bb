"""A replay buffer of whole sequences that a resumed run finds as it was."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ListStorage, TensorDictReplayBuffer

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.training.files import write_atomically

ReplayStorage = Literal["memory", "disk"]
"""Where sequences are drawn from: `"memory"`, or `"disk"`, the files of the run, which the system
maps into memory as far as there is some."""

_PART = re.compile(r"rows-(\d{12})-(\d{12})-([0-9a-f]{16})\.pt")


class SequenceReplay:
    """TorchRL's replay buffer for whole sequences, each of which is written to the disk once.

    Sequences are stored and drawn as they were collected, so every memory starts where it started
    then. When the buffer is full, new ones take the place of the oldest.

    What is added is written to the folder at once, into a file that is whole or not there,
    `rows-<first>-<end>-<hash>.pt`. A checkpoint needs no more than the number of sequences, and a
    resumed run reads the files. Those that no checkpoint needs any more are removed. With
    `storage="disk"` they are also what sequences are drawn from: `LazyMemmapStorage` would take as
    much room again, and a disk that is full would end the process without an error.

    Args:
        folder: where the files are; made when the first is written.
        num_sequences: how many sequences are kept.
        batch_size: how many of them are drawn.
        keys: entries that are kept.
        storage: see `ReplayStorage`.
        keep_checkpoints: how many of the newest checkpoints a run may go back to.
        device: device of what is drawn.

    Raises:
        ValueError: a number is not positive, or `storage` is unknown.

    Examples:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.training import SequenceReplay
        >>> sizes = {"num_sequences": 6, "batch_size": 2}
        >>> replay = SequenceReplay(mkdtemp(), **sizes, keys=["reward"])
        >>> replay.extend(TensorDict({"reward": torch.zeros(4, 10, 1)}, [4, 10]))
        >>> replay.sample().shape, len(replay)
        (torch.Size([2, 10]), 4)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        num_sequences: int,
        batch_size: int,
        keys: Sequence[NestedKey],
        storage: ReplayStorage = "memory",
        keep_checkpoints: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("num_sequences", num_sequences)
        check_count("batch_size", batch_size)
        check_option("storage", storage, ReplayStorage)
        self.folder = Path(folder)
        self.num_sequences = num_sequences
        self.batch_size = batch_size
        self.keys = list(keys)
        self.storage: ReplayStorage = storage
        self.device = torch.device(device)
        # all sequences so far, and how many there were at the last checkpoints
        self.count = 0
        self._counts: list[int] = []
        self._keep = keep_checkpoints
        self._buffer = self._make_buffer()

    def _make_buffer(self) -> TensorDictReplayBuffer:
        kind: Any = LazyTensorStorage if self.storage == "memory" else ListStorage
        return TensorDictReplayBuffer(storage=kind(self.num_sequences), batch_size=self.batch_size)

    def __len__(self) -> int:
        return min(self.count, self.num_sequences)

    def extend(self, batch: TensorDictBase) -> None:
        """Add sequences.

        Args:
            batch: sequences `[B, T]`, the same `T` every time.

        Raises:
            OSError: the disk is full or the folder cannot be written to; nothing was added.
        """
        chosen: Any = batch.select(*self.keys, strict=False)[-self.num_sequences :]
        # clones, because a view would be saved with all that it is a view of; and names of
        # dimensions would have to agree with those of the storage
        rows = TensorDict(chosen.detach().cpu().clone().to_dict(), chosen.batch_size)
        if not self.count:
            # of a run that ended in this folder before it saved anything
            self._remove_parts()
            for stale, _, _ in self._files():
                stale.unlink(missing_ok=True)
        self.count += len(batch)
        try:
            path = self._write(rows)
        except OSError:
            self.count -= len(batch)
            raise
        self._buffer.extend(rows if self.storage == "memory" else self._read(path, len(rows)))

    def sample(self) -> TensorDictBase:
        """Draw sequences with torch's default generator, each as likely as any other.

        Returns:
            Sequences `[batch_size, T]`.

        Raises:
            RuntimeError: there are none yet.
        """
        sample = self._buffer.sample()
        return sample.exclude("index").to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of sequences, and remove files that no checkpoint needs any more.

        Returns:
            What a checkpoint has to hold.
        """
        # one more than is kept, for the checkpoint that is about to be written may fail
        self._counts = [*self._counts, self.count][-self._keep - 1 :]
        for path, _, end in self._files():
            if end <= self._counts[0] - self.num_sequences:
                path.unlink(missing_ok=True)
        return {"count": self.count, "counts": list(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Read the sequences that were there at a checkpoint.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            RuntimeError: a file is missing or damaged, so the run cannot go on.
        """
        self.count = int(state_dict["count"])
        self._counts = [int(count) for count in state_dict["counts"]]
        self._buffer = self._make_buffer()
        self._remove_parts()
        at = max(self.count - self.num_sequences, 0)
        parts: list[TensorDictBase] = []
        last = 0
        for path, first, end in self._files():
            if first >= self.count:
                # collected after the checkpoint, and about to be collected again
                path.unlink(missing_ok=True)
            elif first < last:
                raise RuntimeError(
                    f"{path} holds sequences that another file of the folder holds as well, so the "
                    "run cannot go on as it was; start a new one"
                )
            elif end > at:
                if first > at or end > self.count:
                    break
                rows = self._read(path, end - first, check=True)
                parts.append(rows[at - first :])
                at = end
            last = end
        if at < self.count:
            raise RuntimeError(
                f"{self.folder} lacks sequences {at} to {self.count} of the replay buffer, so the "
                "run cannot go on as it was; start a new one"
            )
        # each in its own place, number i at i modulo the size, and at the end the last ones again
        # for the writer, which goes on behind them
        rest = self.count % self.num_sequences if self.count > self.num_sequences else 0
        split, end = len(self) - rest, len(self)
        for start, stop in ((split, end), (0, split), (split, end)):
            for part in _cut(parts, start, stop):
                self._buffer.extend(part)

    def _write(self, rows: TensorDictBase) -> Path:
        buffer = io.BytesIO()
        torch.save(rows.to_dict(), buffer)
        content = buffer.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rows-{self.count - len(rows):012d}-{self.count:012d}-{_digest(content)}.pt"
        write_atomically(self.folder / name, content)
        return self.folder / name

    def _remove_parts(self) -> None:
        """Remove files that a killed run had begun to write."""
        for part in self.folder.glob("rows-*.pt.part"):
            part.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Files with the numbers of their first sequence and of the one after their last."""
        found: list[tuple[Path, int, int]] = []
        for path in self.folder.glob("rows-*.pt"):
            if match := _PART.fullmatch(path.name):
                found.append((path, int(match[1]), int(match[2])))
        return sorted(found, key=lambda file: file[1:])

    def _read(self, path: Path, length: int, *, check: bool = False) -> TensorDictBase:
        if check and not path.name.endswith(f"-{_digest(path.read_bytes())}.pt"):
            raise RuntimeError(
                f"{path} is damaged: it is not what was written, so the run cannot go on as it "
                "was; start a new one"
            )
        loaded = torch.load(path, weights_only=True, mmap=self.storage == "disk")
        rows = TensorDict(loaded, [length])
        rows.auto_batch_size_(2)
        return rows


def _cut(parts: Sequence[TensorDictBase], start: int, end: int) -> Iterator[TensorDictBase]:
    """Sequences `start` to `end` of all that the parts hold."""
    first = 0
    for part in parts:
        if chosen := range(max(start - first, 0), min(end - first, len(part))):
            yield part[chosen.start : chosen.stop]
        first += len(part)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
