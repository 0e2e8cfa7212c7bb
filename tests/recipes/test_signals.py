"""A signal in any phase ends a run with its state saved, and nothing goes on behind it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests._processes import Child, Running, wait_until
from tests.recipes import _phases
from tests.recipes._helpers import ROOT, Result, check_same_runs, command
from tests.recipes._phases import PHASES, Phase
from torchrl_shm.training import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")

# phases of tens of milliseconds and more
SMALL = (
    "algo.total_frames=3600", "algo.num_envs=24", "algo.rollout_length=50",
    "algo.sequences_per_minibatch=6", "algo.checkpoint_interval=100",
)  # fmt: skip
FRAMES_PER_UPDATE = 1200
STOPS = (signal.SIGINT, signal.SIGTERM)
# what is promised
SECONDS = 10


@dataclass
class Process:
    """A run of its own, as a user starts it; the leader of its process group."""

    process: subprocess.Popen[str]
    output: Path

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *arguments: str, compile: bool = False) -> Any:
        output = folder.with_name("out")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if compile:
            environment["NUMBA_CACHE_DIR"] = str(folder.with_name("numba"))
        script = str(ROOT / "tests" / "recipes" / "_phases.py")
        phases = str(folder.with_name("phases"))
        with (
            open(output, "w") as file,
            subprocess.Popen(
                [sys.executable, script, phases, *arguments, f"hydra.run.dir={folder}"],
                cwd=folder.parent,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield cls(process, output)
            finally:
                process.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def text(self) -> str:
        return self.output.read_text()


# processes that compile have nothing compiled before
BEGIN = {phase: partial(Process.start, compile=phase == "compilation") for phase in PHASES}


@contextmanager
def fork(folder: Path, *arguments: str) -> Any:
    """The same without the seconds of imports."""

    def run() -> None:
        _phases.announce(folder.with_name("phases"))
        result = start(folder, *arguments)
        print(result.stdout, result.stderr)
        sys.exit(result.code)

    with Child(run, folder.with_name("out")) as child:
        yield child


def start(folder: Path, *arguments: str) -> Result:
    return command("ppo_shm.py", *arguments, f"hydra.run.dir={folder}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """The folder of a run that nothing stopped; beside it, when its phases began."""

    @cache
    def make() -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        with fork(folder, *SMALL) as child:
            assert child.wait() == 0, child.text()
        return folder

    return make


@dataclass
class Stop:
    """How a run ended that got a signal."""

    phase: str
    seconds: float
    text: str


def stop(run: Running, folder: Path, phase: Phase, number: int, at: float, nth: int) -> Stop:
    """Send a signal `at` seconds after the beginning of the nth phase of this name."""
    phases = folder.with_name("phases")

    def starts() -> list[float]:
        return [entry.start for entry in _phases.entries(phases) if entry.phase == phase]

    wait_until(lambda: len(starts()) >= nth, run)
    time.sleep(max(starts()[nth - 1] + at - time.monotonic(), 0))
    sent = time.monotonic()
    run.signal(number)
    code = run.wait(SECONDS)
    seconds = time.monotonic() - sent
    # one that comes after the end of the run finds no handler
    assert code == 0 or (code == -number and (folder / "summary.json").exists()), run.text()
    return Stop(_phases.entries(phases)[-1].phase, seconds, run.text())


def check(folder: Path, found: Stop, straight: Path) -> None:
    """It can be loaded, and taken up to become the run that nothing stopped."""
    if (folder / "summary.json").exists():
        # it was done before the signal came
        return
    state = RunFolder(folder).load_checkpoint()
    done = f"stopped after update {state['updates']}, frame {state['frames']}, which is saved"
    assert done in found.text
    assert state["frames"] == FRAMES_PER_UPDATE * state["updates"]
    result = command("ppo_shm.py", f"resume={folder}")
    assert f"resumed at frame {state['frames']}\n" in result.stderr
    check_same_runs(folder, straight)


def try_phase(
    begin: Callable[..., Any], times: int, phase: Phase, straight: Path, tmp_path: Path
) -> list[Stop]:
    """Stop runs at random moments until so many were stopped in the phase; all must survive."""
    draw = random.Random(f"{phase} {times}")
    # how often and how long the phase is; compiling a kernel takes seconds everywhere
    lengths = _phases.lengths(straight.with_name("phases"))[phase] or [1.0]
    stops: list[Stop] = []
    for i in range(3 * times + 3):
        folder = tmp_path / f"{phase}-{i}" / "run"
        folder.parent.mkdir()
        nth = draw.randrange(len(lengths))
        at = draw.uniform(0, lengths[nth])
        with begin(folder, *SMALL) as run:
            found = stop(run, folder, phase, STOPS[i % 2], at, nth + 1)
        check(folder, found, straight)
        if found.phase == phase:
            stops.append(found)
        if len(stops) == times:
            return stops
    pytest.fail(f"only {len(stops)} of {i + 1} signals came during {phase}")


@pytest.mark.parametrize("phase", PHASES)
def test_random_moments(straight: Any, tmp_path: Path, phase: Phase) -> None:
    # what was compiled in this process stays so in its forks
    begin, times = (BEGIN[phase], 1) if phase == "compilation" else (fork, 2)
    try_phase(begin, times, phase, straight(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_20_random_moments(
    straight: Any, tmp_path: Path, phase: Phase, record_property: Any
) -> None:
    """In processes of their own."""
    stops = try_phase(BEGIN[phase], 20, phase, straight(), tmp_path)
    longest = max(found.seconds for found in stops)
    record_property("longest", longest)
    print(f"{phase}: {len(stops)} of 20, at most {longest:.2f} s to exit")
    assert longest < SECONDS


def test_save_and_go_on(straight: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fork(folder, *SMALL) as child:
        phases = folder.with_name("phases")
        wait_until(lambda: "update" in {x.phase for x in _phases.entries(phases)}, child)
        child.signal(signal.SIGUSR1)
        assert child.wait() == 0, child.text()
    # of itself it would save only the last update
    steps = RunFolder(folder).checkpoints.steps()
    assert len(steps) == 2
    assert steps[0] < steps[1] == 3 * FRAMES_PER_UPDATE
    check_same_runs(folder, straight())


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Saving does not stop it, and what was there before is whole."""
    folder = tmp_path / "run"

    def run() -> None:
        from torchrl_shm.training import Checkpoints

        save = Checkpoints.save

        def save_slowly(self: Any, *args: Any, **options: Any) -> Any:
            folder.with_name("saving").touch()
            time.sleep(0.2)
            path = save(self, *args, **options)
            time.sleep(60)
            return path

        Checkpoints.save = save_slowly
        start(folder, *SMALL)

    with Child(run) as child:
        wait_until((folder / "metrics.csv").exists, child)
        child.signal(signal.SIGTERM)
        wait_until(folder.with_name("saving").exists, child)
        time.sleep(0.05)
        assert child.process.is_alive()
        child.signal(signal.SIGINT)
        assert child.wait(5) == -signal.SIGINT
    assert command("ppo_shm.py", f"resume={folder}").code == 0


def descendants(pid: int) -> set[int]:
    """The processes that a process and its children started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that have not ended; dead ones that nobody has collected yet do not count."""
    found: set[int] = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("terminal"),
        pytest.param("terminate", marks=pytest.mark.slow),
        pytest.param("twice", marks=pytest.mark.slow),
        pytest.param("kill", marks=pytest.mark.slow),
    ],
)
def test_no_worker_is_left_behind(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    # one of them, which starts in seconds, will do
    arguments = ("collector=multi_sync", "collector.num_workers=1", "algo.total_frames=12_000")
    with Process.start(folder, *SMALL, *arguments) as run:
        wait_until((folder / "metrics.csv").exists, run)
        workers = descendants(run.pid)
        # it, and what keeps track of its shared memory
        assert len(workers) == 2, run.text()
        match how:
            case "terminal":
                # Ctrl-C reaches every process of the group
                os.killpg(run.pid, signal.SIGINT)
                assert run.wait(SECONDS) == 0, run.text()
            case "terminate":
                run.signal(signal.SIGTERM)
                assert run.wait(SECONDS) == 0, run.text()
            case "twice":
                os.killpg(run.pid, signal.SIGINT)
                time.sleep(0.01)
                os.killpg(run.pid, signal.SIGINT)
                assert run.wait(SECONDS) in (0, -signal.SIGINT)
            case _:
                run.process.kill()
                assert run.wait(SECONDS) == -signal.SIGKILL
        wait_until(lambda: not alive(workers), seconds=SECONDS)
    if how in ("terminal", "terminate"):
        assert RunFolder(folder).load_checkpoint()["updates"] >= 1
        # workers say nothing of their own
        assert "Traceback" not in run.text()
