"""The life of a run: all that is not the algorithm, once for all algorithms."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.record.loggers import Logger
from tqdm import tqdm

from torchrl_shm.training import ranks
from torchrl_shm.training.collection import RolloutCollector
from torchrl_shm.training.evaluation import episode_statistics, evaluate
from torchrl_shm.training.experiment import Experiment
from torchrl_shm.training.files import write_atomically
from torchrl_shm.training.finite import FiniteCheck
from torchrl_shm.training.loggers import log_row
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.run_state import RunState, Stateful
from torchrl_shm.training.signals import Signals

Algo = TypeVar("Algo")
# columns that count, of which there is no average
_COUNTS = ("update", "frames")


# note on errors after the first batch was asked for
_TRAINING = "The error is of the training"


def is_of_training(error: BaseException) -> bool:
    """Whether a `TrainingRun` had begun to train when an error was raised.

    Args:
        error: what a recipe raised.

    Returns:
        False for whatever went wrong before, such as options that do not fit each other.
    """
    return any(note.startswith(_TRAINING) for note in getattr(error, "__notes__", ()))


class TrainingRun:
    """Seeds, folder, logs, checkpoints, signals, resume and the final evaluation of one run.

    An algorithm tracks what changes while it trains, iterates over `batches`, and calls `log` once
    per batch. A checkpoint is written every `experiment.checkpoint_interval` updates; a run that
    continues from it repeats every number bit for bit.

    | signal | what happens |
    |---|---|
    | SIGINT (Ctrl-C), SIGTERM | ends the process with code 0, while training after the update that is going on, which is saved |
    | one of them again, a second later or more | ends the process at once |
    | SIGUSR1 | saves after the update that is going on, and goes on |
    | one for which the process has a handler, as with submitit | saves after the update that is going on, and calls that handler |

    An error ends the run where it is; the newest checkpoint stays. Where nothing was written yet
    but its configuration, that goes as well.

    Where `torchrun` has started several processes, each takes the part of the run that `share_out`
    gives it. Process 0 writes the folder; a checkpoint has the state of all.

    Args:
        folder: where the run writes; `open` makes and locks it.
        experiment: the values of the run.
        names: names of the task and of the memory, `env` and `memory`.

    Attributes:
        folder: the `RunFolder`.
        check: the `FiniteCheck` of the run.
        summary: what a finished run left in `summary.json`; `None` for one that has to be trained.

    Examples:
        >>> from functools import partial
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> from torchrl_shm.training import Experiment, RolloutCollector, TrainingRun
        >>> experiment = Experiment(total_frames=80, num_envs=4, run_dir=mkdtemp())
        >>> with TrainingRun.open("example", experiment, WindEnv, SHMModule) as run:
        ...     operator = make_actor_critic(WindEnv(4), SHMModule)
        ...     policy = operator.get_policy_operator()
        ...     collector = RolloutCollector(
        ...         WindEnv, policy, num_envs=4, rollout_length=10, total_frames=80)
        ...     run.track(operator=operator, collector=collector)
        ...     for batch in run.batches(collector):
        ...         run.log({"loss": 0.0})
        >>> run.updates, run.frames
        (2, 80)
    """  # noqa: E501

    def __init__(self, folder: RunFolder, experiment: Experiment, names: dict[str, str]) -> None:
        self.folder = folder
        self.experiment = experiment
        self.names = names
        self.check = FiniteCheck(experiment.on_nonfinite)
        self.summary = folder.summary
        self._state = RunState(folder)
        self._make_logger: Callable[..., Logger | None] | None = None
        self._logger: Logger | None = None
        self._collector: RolloutCollector | None = None
        self._bar: tqdm[Any] | None = None
        self._row: dict[str, float] = {}
        self._start = self._last = time.perf_counter()
        self._signals = Signals()
        self._wrote_config = False
        self._shared_out = False

    @property
    def updates(self) -> int:
        """Number of updates done."""
        return self._state.updates

    @property
    def frames(self) -> int:
        """Frames of these updates."""
        return self._state.frames

    @classmethod
    def open(
        cls,
        recipe: str,
        experiment: Experiment,
        env: Callable[..., EnvBase],
        memory: Callable[..., TensorDictModuleBase],
        logger: Callable[..., Logger | None] | None = None,
        config: DictConfig | None = None,
    ) -> TrainingRun:
        """Make and lock the folder, seed all generators, write the configuration.

        Args:
            recipe: name of the recipe, for the folder.
            experiment: the values of the run.
            env: makes the environment; names the task if `experiment.names` is `None`.
            memory: makes the memory; names it in the same way.
            logger: makes a TorchRL logger from `run_dir`, or `None` for `metrics.csv` alone.
            config: the composed configuration, for `config.yaml`; `None` where the recipe was
                called from Python, whose runs `torchrl-shm evaluate` cannot rebuild.

        Returns:
            The run, to be entered as a context.

        Raises:
            FileExistsError: the folder holds the results of another run.
            RuntimeError: another process is running there.
            OSError: the folder cannot be made or written to.
            ValueError: the device is unknown or missing, or `experiment.resume` is `"auto"`, which
                only the command line resolves.
        """
        if experiment.resume == "auto":
            raise ValueError("experiment.resume='auto' needs the command line; name the folder")
        experiment.check_device()
        names = experiment.names or {"env": _name(env), "memory": _name(memory)}
        ranks.join()
        now = time.strftime(f"outputs/{recipe}/%Y-%m-%d/%H-%M-%S")
        default = f"{now}_{names['memory']}_seed{experiment.seed}"
        path = ranks.from_first(experiment.resume or experiment.run_dir or default)
        made = ranks.on_first(
            lambda: RunFolder.create(
                path,
                resume=experiment.resume is not None,
                keep_checkpoints=experiment.keep_checkpoints,
            )
        )
        run = cls(made or RunFolder(path), experiment, names)
        run.summary = ranks.from_first(run.summary)
        if run.summary is not None:
            _say_first(json.dumps(run.summary))
            return run
        try:
            run._set_up(logger, config)
        except Exception:
            run._discard()
            raise
        return run

    def _set_up(
        self, logger: Callable[..., Logger | None] | None, config: DictConfig | None
    ) -> None:
        """Seed all generators and write the configuration."""
        torch.set_num_threads(self.experiment.threads)
        # all processes make the same networks
        _seed(self.experiment.seed)
        path = self.folder.path
        if config is not None and ranks.rank() == 0:
            plain: Any = OmegaConf.to_container(config, resolve=True)
            # a run that is taken up keeps its configuration
            plain["experiment"]["resume"] = None
            self._wrote_config = not (path / "config.yaml").exists()
            write_atomically(path / "config.yaml", OmegaConf.to_yaml(plain).encode())
        self._make_logger = logger

    def _discard(self) -> None:
        """Take back what was written of a run that has not begun, and unlock its folder."""
        if self._wrote_config:
            (self.folder.path / "config.yaml").unlink(missing_ok=True)
        self.folder.close()

    def _left_nothing(self) -> bool:
        """Whether a new run has written no more than its configuration."""
        if self.updates or self.experiment.resume is not None:
            return False
        try:
            names = {path.name for path in self.folder.path.iterdir()}
        except OSError:
            return False
        # another process may have been first to take the configuration back
        return names <= {"config.yaml"}

    def share_out(self, algo: Algo) -> tuple[Experiment, Algo]:
        """Give this process its part of the run, whose values are those of all together.

        So a command means the same on one process and on many: as many environments, frames, and
        sequences per gradient step.

        Args:
            algo: values of the algorithm, a dataclass with `sequences_per_minibatch`.

        Returns:
            The values of the run and of the algorithm for this process.

        Raises:
            ValueError: something cannot be shared out, see `torchrl_shm.training.ranks.share_of`.
        """
        self._shared_out = True
        if ranks.num_ranks() == 1:
            return self.experiment, algo
        values: Any = algo
        name = "sequences_per_minibatch"
        part = {name: ranks.divide(f"algo.{name}", values.sequences_per_minibatch)}
        return ranks.share_of(self.experiment), dataclasses.replace(values, **part)

    def track(self, **parts: Stateful) -> None:
        """Register what changes while training; all of it is saved and restored.

        Args:
            **parts: by name. `torchrl-shm evaluate` and `export` read `operator`, the module whose
                `get_policy_operator()` is the policy. The generators of torch, numpy and python,
                the metrics and the counters are saved as well.
        """
        self._state.parts |= parts

    def batches(self, collector: RolloutCollector) -> Iterator[TensorDictBase]:
        """Iterate over what is collected, from where the run was stopped if it is resumed.

        Args:
            collector: the collector; closed when the run ends.

        Yields:
            Batches `[B, T]`, in which everything is finite.

        Raises:
            RuntimeError: every checkpoint of a resumed run is damaged, or they are of another
                recipe or number of processes; or an algorithm did not call `log`.
            ValueError: there are several processes, and the algorithm did not call `share_out`.
            FloatingPointError: a value is not finite, see `FiniteCheck.rollouts`.
            OSError: the disk is full or cannot be written to.
        """
        self._collector = collector
        if ranks.num_ranks() > 1:
            self._start_together()
        seconds = self._restore() if self.experiment.resume is not None else 0.0
        # here, where all values were found right: it writes files of its own
        if self._make_logger is not None and ranks.rank() == 0:
            self._logger = self._make_logger(run_dir=str(self.folder.path))
        self._last = time.perf_counter()
        self._start = self._last - seconds
        # no bar where stderr is not a terminal
        self._bar = tqdm(
            total=collector.num_batches * collector.frames_per_batch * ranks.num_ranks(),
            initial=self.frames,
            unit="frame",
            disable=ranks.rank() > 0 or None,
        )
        self._signals.wait = True
        for batch in collector:
            self.check.update = self.updates
            frames = self.frames + batch.numel() * ranks.num_ranks()
            self._row = {"update": self.updates, "frames": frames, **episode_statistics(batch)}
            before = self.updates
            yield self.check.rollouts(batch)
            if self.updates == before:
                raise RuntimeError("the algorithm must call run.log once per batch")
        stop, _ = self._agree()
        self.save()
        self._signals.wait = False
        self._act(stop)

    def _start_together(self) -> None:
        """Make the copies of the networks equal, and the generators of the processes differ."""
        if not self._shared_out:
            raise ValueError(
                f"this recipe learns on one process, and there are {ranks.num_ranks()}; start it "
                "without torchrun"
            )
        for part in self._state.parts.values():
            if isinstance(part, nn.Module):
                ranks.copy_first(part)
        _seed(ranks.own_seed(self.experiment.seed))

    def _agree(self) -> tuple[bool, bool]:
        """Whether a signal asked any of the processes to stop, or to save."""
        asked = (self._signals.stop, self._signals.save)
        if ranks.num_ranks() == 1:
            return asked
        # one that comes meanwhile is known to this process alone, and waits for the next update
        stop, save = (bool(ranks.largest(torch.tensor(float(x)))) for x in asked)
        return stop, save

    def _act(self, agreed: bool) -> None:
        self._signals.act(agreed if ranks.num_ranks() > 1 else None)

    def log(self, metrics: Mapping[str, float]) -> None:
        """End an update: write its row, save if it is time, and stop if a signal asked for it.

        Args:
            metrics: numbers of the algorithm by name, the same names every time. Number of the
                update, frames, return, success and times are added.

        Raises:
            FloatingPointError: the state is not finite, so it cannot be saved.
            OSError: the disk is full or cannot be written to.
            SystemExit: a signal asked for the end; all is saved.

        Warns:
            UserWarning: the logger raised; the row is in `metrics.csv`.
        """
        row = self._row | dict(metrics)
        row |= ranks.average_numbers({key: row[key] for key in row if key not in _COUNTS})
        now = time.perf_counter()
        row["seconds"] = now - self._start
        row["frames_per_second"] = (row["frames"] - self.frames) / (now - self._last)
        self._last = now
        ranks.on_first(lambda: self.folder.log(row))
        frames = self.frames
        self._state.updates += 1
        self._state.frames = int(row["frames"])
        if math.isfinite(row["return"]):
            self._state.last_return = float(row["return"])
        if self._logger is not None:
            log_row(self._logger, row, self.frames)
        if self._bar is not None:
            shown = {key: f"{row[key]:.2f}" for key in ("return", "success") if key in row}
            self._bar.set_postfix(shown)
            self._bar.update(self.frames - frames)
        stop, save = self._agree()
        due = self.updates % self.experiment.checkpoint_interval == 0
        if due or save or stop:
            self.save()
        self._act(stop)

    def save(self) -> None:
        """Write a checkpoint of the state after the last update, unless that was done already.

        Raises:
            FloatingPointError: the state is not finite.
            OSError: the disk is full or cannot be written to.
        """
        self._signals.save = False
        self._state.save(self._last - self._start)

    def finish(self, policy: TensorDictModuleBase, test_env: EnvBase) -> dict[str, Any]:
        """Draw the learning curve, evaluate on the test tasks, write and print the summary.

        Args:
            policy: the policy; evaluated with the mean or most likely action.
            test_env: environment of `make_test_env`.

        Returns:
            The summary.
        """
        ranks.on_first(lambda: self._evaluate(policy, test_env))
        self.summary = ranks.from_first(self.summary)
        assert self.summary is not None
        _say_first(json.dumps(self.summary))
        return self.summary

    def _evaluate(self, policy: TensorDictModuleBase, test_env: EnvBase) -> None:
        # matplotlib takes long to load, so it is loaded at the end
        from torchrl_shm.figures import plot_learning_curve

        seed = self.experiment.seed
        label = f"{self.names['env']}, {self.names['memory']}, seed {seed}"
        curve = self.folder.path / "learning_curve.png"
        plot_learning_curve(self.folder.metrics, curve, title=label)
        result = evaluate(policy, test_env)
        self.summary = {
            **self.names,
            "seed": seed,
            "frames": self.frames,
            "seconds": round(time.perf_counter() - self._start, 1),
            "eval_return": round(result.mean_return, 4),
            "eval_success": result.success_rate,
        }
        self.folder.write_summary(self.summary)

    def _restore(self) -> float:
        """Go on from the newest checkpoint, if there is one; returns the seconds trained so far."""
        seconds = self._state.restore()
        if ranks.rank() == 0:
            _say(
                "nothing was saved yet, so the run starts again"
                if seconds is None
                else f"resumed at frame {self.frames}"
            )
        return seconds or 0.0

    def __enter__(self) -> Self:
        self._signals.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._collector is not None:
            self._collector.close()
        self._signals.__exit__(kind, error, trace)
        can_discard = isinstance(error, Exception) and self.summary is None
        # the bar is made where training begins
        if can_discard and self._bar is None:
            self._discard()
            return
        if can_discard and self._left_nothing():
            self._discard()
            where = "; nothing was saved."
        else:
            self.folder.close()
            where = f" of {self.folder.path}."
        if error is not None:
            error.add_note(f"{_TRAINING}, update {self.updates}{where}")
            saved = self.folder.checkpoints.steps() if ranks.rank() == 0 else []
            if saved:
                _say(
                    f"stopped; all up to frame {saved[-1]} is saved, go on with "
                    f"experiment.resume={self.folder.path}"
                )
            if ranks.is_lost(error):
                _say(
                    f"process {ranks.rank()} of the run ends, since another one has died: torchrun "
                    "names it below"
                )
                raise SystemExit(1) from None


def _name(factory: Any) -> str:
    while isinstance(factory, functools.partial):
        factory = factory.keywords.get("cell", factory.func)
    return getattr(factory, "__name__", type(factory).__name__)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    # environments of other packages may draw from these
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _say_first(text: str) -> None:
    if ranks.rank() == 0:
        print(text, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
