"""What changes while a run trains, as one checkpoint: parts, counters, and the rows so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchrl.checkpoint import GlobalRNGState

from torchrl_shm.training import ranks
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.weights import load_weights


class Stateful(Protocol):
    """What can be saved: modules, optimizers, schedules, collectors."""

    def state_dict(self) -> Any:
        """Everything that changes."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from what `state_dict` returned."""
        ...


class RunState:
    """The state of a run, and how it gets into a checkpoint and back.

    What is the same on all processes is saved once; of the rest, such as generators, collectors and
    replay buffers, a checkpoint has that of every process.

    Args:
        folder: the folder of the run.

    Attributes:
        parts: what changes, by name.
        updates: number of updates done.
        frames: frames of these updates.
        last_return: the newest average return; `None` before the first episode has ended.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.parts: dict[str, Stateful] = {"rng": GlobalRNGState()}
        self.updates = 0
        self.frames = 0
        self.last_return: float | None = None
        self._saved: int | None = None

    def save(self, seconds: float) -> None:
        """Write a checkpoint of the state after the last update, unless that was done already.

        Args:
            seconds: how long the run has trained.

        Raises:
            FloatingPointError: the state is not finite.
            OSError: the disk is full or cannot be written to.
        """
        if self._saved == self.updates:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if ranks.num_ranks() > 1:
            own = {name: state.pop(name) for name, x in self.parts.items() if not _is_shared(x)}
            state["ranks"] = ranks.to_first(own)
        state |= {
            "updates": self.updates,
            "frames": self.frames,
            "seconds": seconds,
            "return": self.last_return,
            "metrics": self.folder.metrics_csv,
        }
        ranks.on_first(
            lambda: self.folder.checkpoints.save(state, step=self.frames, metric=self.last_return)
        )
        self._saved = self.updates

    def restore(self) -> float | None:
        """Go on from the newest checkpoint, if there is one.

        Returns:
            The seconds trained so far; `None` where nothing was saved yet.

        Raises:
            RuntimeError: every checkpoint is damaged, or they are of another recipe or number of
                processes.
            ValueError: weights do not fit the networks of the config.
        """
        state = ranks.from_first(ranks.on_first(self._load))
        if state is None:
            return None
        self._check_processes(state)
        # that of one process, and what is the same on all
        state |= state.pop("ranks", [{}] * ranks.num_ranks())[ranks.rank()]
        missing = [name for name in self.parts if name not in state]
        if missing:
            raise RuntimeError(
                f"the checkpoint of {self.folder.path} lacks {missing}: it is of another recipe or "
                "of another version, and the run cannot go on"
            )
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                load_weights(part, state[name], f"the {name} in {self.folder.path}")
            else:
                part.load_state_dict(state[name])
        self.updates = self._saved = int(state["updates"])
        self.frames = int(state["frames"])
        self.last_return = state["return"]
        if ranks.rank() == 0:
            self.folder.restore_metrics(state["metrics"])
            self.folder.checkpoints.clean(after=self.frames)
        return float(state["seconds"])

    def _load(self) -> dict[str, Any] | None:
        try:
            # parts move what they load to their own devices
            return self.folder.checkpoints.load()
        except FileNotFoundError:
            return None

    def _check_processes(self, state: Mapping[str, Any]) -> None:
        before = len(state.get("ranks", [{}]))
        if before != ranks.num_ranks():
            raise RuntimeError(
                f"{self.folder.path} was trained by {before} processes, which cannot go on as "
                f"{ranks.num_ranks()}; start as many, with torchrun --nproc_per_node={before}"
            )


def _is_shared(part: Stateful) -> bool:
    """Whether something is the same on all processes."""
    return isinstance(part, nn.Module | Optimizer | LRScheduler)
