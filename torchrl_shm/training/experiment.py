"""What every run has, whatever its algorithm: how long, how wide, where, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass

from torchrl_shm.checks import check_count, check_device, check_option
from torchrl_shm.training.compiling import Compile
from torchrl_shm.training.finite import OnNonfinite


@dataclass
class Experiment:
    """Values of a run that mean the same for every algorithm.

    Attributes:
        seed: seed of the parameters, of the environments and of the random gates.
        total_frames: environment steps, rounded up to whole batches.
        num_envs: environments that step together, over all workers.
        device: `"cpu"`, `"cuda"` or `"cuda:1"`; that of environments and networks.
        threads: threads of torch; more than one slow small networks down.
        compile: what goes through `torch.compile`: `"none"`, the `"update"`, or `"all"`, which
            adds the policy's step in collection.
        num_test_episodes: episodes of the final evaluation, where the task has no list of tests.
        max_test_steps: steps after which an episode of the evaluation is cut. `None` is 1,000 in
            environments that say that nothing else ends an episode, and no bound in all others.
        checkpoint_interval: updates between two checkpoints; one more is written at the end.
        keep_checkpoints: how many of the newest checkpoints to keep, beside the best.
        on_nonfinite: `"stop"` ends the run at the first data or gradient that is not finite;
            `"skip"` leaves such sequences and minibatches out.
        resume: folder of a run that is to be continued; on the command line also `"auto"`, the
            newest unfinished run of the same configuration.
        run_dir: folder of the run. Default: a new one under `outputs/`, named by recipe, time,
            memory and seed.
        names: names of the task and of the memory, `env` and `memory`, for summaries and figures.
            Default: the names of the objects.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.training import Experiment
        >>> Experiment(total_frames=20_000).num_envs
        256
    """

    seed: int = 0
    total_frames: int = 3_200_000
    num_envs: int = 256
    device: str = "cpu"
    threads: int = 1
    compile: Compile = "none"
    num_test_episodes: int = 256
    max_test_steps: int | None = None
    checkpoint_interval: int = 20
    keep_checkpoints: int = 3
    on_nonfinite: OnNonfinite = "stop"
    resume: str | None = None
    run_dir: str | None = None
    names: dict[str, str] | None = None

    def __post_init__(self) -> None:
        counts = (
            "total_frames", "num_envs", "threads", "num_test_episodes", "checkpoint_interval",
            "keep_checkpoints",
        )  # fmt: skip
        for name in counts:
            check_count(f"experiment.{name}", getattr(self, name))
        check_count("experiment.seed", self.seed, 0)
        if self.max_test_steps is not None:
            check_count("experiment.max_test_steps", self.max_test_steps)
        check_option("experiment.compile", self.compile, Compile)
        check_option("experiment.on_nonfinite", self.on_nonfinite, OnNonfinite)

    def check_device(self) -> None:
        """Refuse a device that this machine does not have; a saved experiment may name one.

        Raises:
            ValueError: `device` is unknown or missing.
        """
        check_device("experiment.device", self.device)

    def refuse_compile(self) -> None:
        """Refuse `compile`, for recipes that have no use for it.

        Raises:
            ValueError: something is to be compiled.
        """
        if self.compile != "none":
            raise ValueError(
                f"experiment.compile={self.compile!r} is not offered by this recipe; use none"
            )
