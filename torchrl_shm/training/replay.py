"""A replay buffer of whole sequences that a resumed run finds as it was."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.training.files import write_atomically

ReplayStorage = Literal["memory", "disk"]
"""Where sequences are drawn from: `"memory"`, or `"disk"`, files that are mapped into memory."""

_PART = re.compile(r"rows-(\d{12})-(\d{12})-([0-9a-f]{16})\.pt")


class SequenceReplay:
    """TorchRL's replay buffer for whole sequences, which costs a checkpoint only what is new.

    Sequences are stored and drawn as they were collected, so every memory starts where it started
    then. When the buffer is full, new ones take the place of the oldest.

    A checkpoint holds the number of sequences. These themselves are in the folder, in files that
    are each written once, when a checkpoint is, and whole or not there: `rows-<first>-<end>-<hash>`.
    Files that no checkpoint needs any more are removed.

    Args:
        folder: where the files are; made when it is needed.
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
        # all sequences so far, those of them in files, and what was there at the last checkpoints
        self.count = self._saved = 0
        self._counts: list[int] = []
        self._keep = keep_checkpoints
        self._new: list[TensorDictBase] = []
        self._buffer = self._make_buffer()

    def _make_buffer(self) -> TensorDictReplayBuffer:
        size = self.num_sequences
        if self.storage == "memory":
            storage: Any = LazyTensorStorage(size)
        else:
            # a scratch of this process, written anew from the files when a run is resumed
            storage = LazyMemmapStorage(size, scratch_dir=self.folder / "scratch", existsok=True)
        return TensorDictReplayBuffer(storage=storage, batch_size=self.batch_size)

    def __len__(self) -> int:
        return min(self.count, self.num_sequences)

    def extend(self, batch: TensorDictBase) -> None:
        """Add sequences.

        Args:
            batch: sequences `[B, T]`, the same `T` every time.
        """
        rows = batch.select(*self.keys, strict=False).cpu().detach()
        # names of dimensions would have to agree with those of the storage
        rows = TensorDict(dict(rows.items()), rows.batch_size)
        self._buffer.extend(rows[-self.num_sequences :])
        self._new.append(rows)
        self.count += len(rows)

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
        """Write what is new into a file, and return the number of sequences.

        Returns:
            What a checkpoint has to hold.

        Raises:
            OSError: the disk is full or the folder cannot be written to; older files are there.
        """
        if self.count > self._saved:
            rows = torch.cat(self._new)[-self.num_sequences :]
            buffer = io.BytesIO()
            torch.save(rows.to_dict(), buffer)
            content = buffer.getvalue()
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"rows-{self.count - len(rows):012d}-{self.count:012d}-{_digest(content)}.pt"
            write_atomically(self.folder / name, content)
            self._saved, self._new = self.count, []
        self._counts = [*self._counts, self.count][-self._keep - 1 :]
        # the newest checkpoint is about to be written, and may fail: one more is still needed
        oldest = self._counts[0] - self.num_sequences
        for path, _, end in self._files():
            if end <= oldest:
                path.unlink(missing_ok=True)
        return {"count": self.count, "counts": list(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Read the sequences that were there at a checkpoint.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            RuntimeError: a file is missing or damaged, so the run cannot go on.
        """
        self.count = self._saved = int(state_dict["count"])
        self._counts = [int(count) for count in state_dict["counts"]]
        self._new = []
        self._buffer = self._make_buffer()
        at = max(self.count - self.num_sequences, 0)
        parts: list[TensorDictBase] = []
        for path, first, end in self._files():
            if first >= self.count:
                # of a checkpoint that was not written, or that the run went back behind
                path.unlink(missing_ok=True)
            elif end > at:
                if first > at or end > self.count:
                    break
                parts.append(self._read(path, end - first)[at - first :])
                at = end
        if at < self.count:
            raise RuntimeError(
                f"{self.folder} lacks sequences {at} to {self.count} of the replay buffer, so the "
                "run cannot go on as it was; start a new one"
            )
        if not parts:
            return
        rows: Any = torch.cat(parts)
        # each in its own place: number i at i modulo the size
        rest = self.count % self.num_sequences
        if len(rows) == self.num_sequences:
            rows = torch.cat([rows[-rest:], rows[:-rest]]) if rest else rows
            self._buffer.extend(rows)
            # and the writer where it was
            rows = rows[:rest]
        if len(rows):
            self._buffer.extend(rows)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Files with the numbers of their first sequence and of the one after their last."""
        found: list[tuple[Path, int, int]] = []
        for path in self.folder.glob("rows-*.pt"):
            if match := _PART.fullmatch(path.name):
                found.append((path, int(match[1]), int(match[2])))
        return sorted(found, key=lambda file: file[1:])

    def _read(self, path: Path, length: int) -> TensorDictBase:
        content = path.read_bytes()
        if not path.name.endswith(f"-{_digest(content)}.pt"):
            raise RuntimeError(
                f"{path} is damaged: it is not what was written, so the run cannot go on as it "
                "was; start a new one"
            )
        loaded = torch.load(io.BytesIO(content), weights_only=True)
        rows = TensorDict(loaded, [length])
        rows.auto_batch_size_(2)
        return rows


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
