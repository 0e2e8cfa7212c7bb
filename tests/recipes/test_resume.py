"""A run that was killed and continued is the run that nothing stopped."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests._night import at_night
from tests._processes import Child, wait_until
from tests.recipes._helpers import (
    RECIPES,
    Result,
    check_same_runs,
    command,
    fitting,
    process,
    read_metrics,
    without_time,
)
from torchrl_shm.configs import ENVS, MEMORIES
from torchrl_shm.training import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")

# six updates; rollouts end in mid-episode, and checkpoints in mid-run
SMALL = (
    "experiment.total_frames=720", "experiment.num_envs=6", "algo.rollout_length=20",
    "algo.sequences_per_minibatch=3", "algo.epochs=2", "experiment.checkpoint_interval=2",
    "experiment.num_test_episodes=6",
)  # fmt: skip
FRAMES_PER_UPDATE = 120

# a task in the plane, one on a grid, one of cards; actor and critic share the memory or do not
CASES: dict[str, tuple[str, ...]] = {
    # as without options
    "wind": (),
    "key_to_door": ("env=key_to_door_100", "memory=gru", "network.shared_memory=false"),
    "popgym": (
        "env=popgym_repeat_previous_easy", "memory=shm", "network.shared_memory=false",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing stopped."""

    @cache
    def make(*arguments: str, recipe: str = "ppo_shm") -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        result = start(folder, *arguments, recipe=recipe)
        assert result.code == 0, result.stderr
        return folder

    return make


def start(folder: Path, *arguments: str, recipe: str = "ppo_shm") -> Result:
    small = fitting(recipe, SMALL)
    return command(f"{recipe}.py", *small, *arguments, f"hydra.run.dir={folder}")


def resume(folder: Path, *arguments: str, recipe: str = "ppo_shm") -> Result:
    return command(f"{recipe}.py", f"experiment.resume={folder}", *arguments)


def num_rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    # whole lines but for the one of the names
    return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0


def kill(begin: Callable[[], Result], folder: Path, after: int = 3) -> None:
    """Start a run and kill it in the update after the given number of them."""
    with Child(begin, folder.with_name("out")) as child:
        wait_until(lambda: num_rows(folder) >= after, child)
        time.sleep(0.02)
        child.process.kill()
        assert child.wait() == -signal.SIGKILL, child.text()
    assert not (folder / "summary.json").exists()


def check_killed_and_resumed(
    tmp_path: Path, straight: Path, *arguments: str, recipe: str = "ppo_shm"
) -> None:
    folder = tmp_path / "run"
    kill(partial(start, folder, *arguments, recipe=recipe), folder)
    config, before = (folder / "config.yaml").read_bytes(), num_rows(folder)
    result = resume(folder, recipe=recipe)
    assert result.code == 0, result.stderr
    (at,) = [int(line.split()[-1]) for line in result.stderr.splitlines() if "resumed" in line]
    # from a checkpoint, not from the row that was written last
    assert at % (2 * FRAMES_PER_UPDATE) == 0
    assert FRAMES_PER_UPDATE * (before - 2) <= at <= FRAMES_PER_UPDATE * before
    check_same_runs(folder, straight)
    assert (folder / "config.yaml").read_bytes() == config
    # the folder that Hydra made for a new run is gone
    assert list(Path.cwd().iterdir()) == []


class TestKilled:
    @pytest.mark.parametrize("case", at_night(CASES, unless=lambda case: case == "wind"))
    def test_and_resumed(self, straight: Any, tmp_path: Path, case: str) -> None:
        check_killed_and_resumed(tmp_path, straight(*CASES[case]), *CASES[case])

    # tests of signals interrupt and resume them, too
    @pytest.mark.parametrize(
        "recipe",
        at_night(sorted(RECIPES.keys() - {"ppo_shm"}), unless=lambda recipe: recipe == "grpo_shm"),
    )
    def test_other_recipes(self, straight: Any, tmp_path: Path, recipe: str) -> None:
        whole = straight(*CASES["wind"], recipe=recipe)
        check_killed_and_resumed(tmp_path, whole, *CASES["wind"], recipe=recipe)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
    def test_compiled(self, straight: Any, tmp_path: Path) -> None:
        # minibatches of two sizes
        arguments = (*CASES["wind"], "experiment.compile=all", "algo.sequences_per_minibatch=4")
        check_killed_and_resumed(tmp_path, straight(*arguments), *arguments)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*has grown to")
    @pytest.mark.parametrize(
        ("group", "name"),
        [
            *(("memory", name) for name in MEMORIES),
            # see test_episodes_of_other_packages_start_anew
            *(("env", name) for name in ENVS if name != "gym" and "/" not in name),
            ("collector", "multi_sync"),
        ],
    )
    def test_every_member(self, straight: Any, tmp_path: Path, group: str, name: str) -> None:
        argument = f"{group}={name}"
        check_killed_and_resumed(tmp_path, straight(argument), argument)

    @pytest.mark.slow
    def test_twice(self, straight: Any, tmp_path: Path) -> None:
        """And continued in another process, which starts with nothing of the first one."""
        folder = tmp_path / "run"
        kill(partial(start, folder), folder)
        kill(partial(resume, folder), folder, after=5)
        result = process("ppo_shm.py", f"experiment.resume={folder}", cwd=tmp_path)
        assert (result.code, result.stderr.count("resumed at frame")) == (0, 1)
        check_same_runs(folder, straight())

    def test_before_the_first_checkpoint(self, straight: Any, tmp_path: Path) -> None:
        """It starts again, over what was there."""
        folder = tmp_path / "run"
        kill(partial(start, folder, "experiment.checkpoint_interval=100"), folder)
        assert not (folder / "checkpoints").exists()
        result = resume(folder)
        assert result.code == 0
        assert "nothing was saved yet, so the run starts again\n" in result.stderr
        assert without_time(folder) == without_time(straight())


def stop_after(folder: Path, updates: int, *arguments: str) -> None:
    """Interrupt a run of this process, as Ctrl-C would."""
    log = RunFolder.log

    def log_and_stop(run: RunFolder, row: Any) -> None:
        log(run, row)
        if len(run.metrics) == updates:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_stop)
        result = start(folder, *arguments)
    assert (result.code, result.stdout) == (0, "")
    assert f"all up to frame {updates * FRAMES_PER_UPDATE} is saved, go on" in result.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    # read when CUDA is first used, so this needs a process whose first test it is, or the variable
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        start(tmp_path / "straight", *CASES[case], "experiment.device=cuda")
        # a fork cannot use a GPU that this process has used
        stop_after(tmp_path / "run", 3, *CASES[case], "experiment.device=cuda")
        assert resume(tmp_path / "run").code == 0
    finally:
        torch.use_deterministic_algorithms(False)
    check_same_runs(tmp_path / "run", tmp_path / "straight")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestFolder:
    """`experiment.resume=<folder>`."""

    def test_interrupted(self, straight: Any, tmp_path: Path) -> None:
        """Ctrl-C loses no update, whatever the interval."""
        folder = tmp_path / "run"
        stop_after(folder, 3)
        result = resume(folder)
        assert f"resumed at frame {3 * FRAMES_PER_UPDATE}\n" in result.stderr
        check_same_runs(folder, straight())

    def test_finished(self, straight: Any) -> None:
        """Its summary is printed again, and nothing is touched."""
        before = contents(straight())
        result = resume(straight())
        assert (result.code, result.stderr) == (0, "")
        assert result.summary == RunFolder(straight()).summary
        assert contents(straight()) == before

    def test_mistakes(self, straight: Any, tmp_path: Path) -> None:
        folder = straight()
        before = contents(folder)
        result = resume(folder, "algo.epochs=3")
        assert result.code == 2
        assert "keeps that run's configuration; leave out ['algo.epochs=3']" in result.stderr
        result = start(folder)
        assert result.code == 2
        assert "is of another run, which would be overwritten; continue it with" in result.stderr
        run = RunFolder.create(folder, resume=True)
        result = resume(folder)
        run.close()
        assert result.code == 2
        assert f"{folder} is in use: a run is writing there" in result.stderr
        assert contents(folder) == before
        result = resume(tmp_path / "nothing")
        assert (result.code, result.stderr.count("\n")) == (2, 1)
        missing = f"experiment.resume={tmp_path / 'nothing'} is not the folder of a run"
        assert missing in result.stderr
        assert not (tmp_path / "nothing").exists()


class TestAuto:
    """`experiment.resume=auto`: the same command, however often a scheduler starts it."""

    def test_same_folder(self, straight: Any, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        kill(partial(start, folder, "experiment.resume=auto"), folder)
        result = start(folder, "experiment.resume=auto")
        assert "resumed at frame" in result.stderr
        check_same_runs(folder, straight())
        # now it is finished
        again = start(folder, "experiment.resume=auto")
        assert (again.summary, again.stderr) == (result.summary, "")
        # of another length it is another run
        other = start(folder, "experiment.resume=auto", "experiment.total_frames=1")
        assert other.code == 2
        assert "is of another run" in other.stderr

    def test_newest_unfinished_of_the_same_configuration(self) -> None:
        def auto() -> Result:
            arguments = ("experiment.total_frames=240", "experiment.resume=auto")
            return command("ppo_shm.py", *SMALL, *arguments)

        runs = Path("outputs", "ppo_shm", "2000-01-01")
        stop_after(runs / "older", 1, "experiment.total_frames=240")
        names = ("newer", "running", "finished", "other", "unlike", "damaged")
        for tick, name in enumerate(names):
            config = shutil.copytree(runs / "older", runs / name) / "config.yaml"
            if name == "newer":
                # from before there were these options, which have their defaults
                lines = config.read_text()
                for line in ("  feature_map: relu\n", "  action_scale: global\n"):
                    assert line in lines
                    lines = lines.replace(line, "")
                config.write_text(lines)
            if name == "unlike":
                # from before there was one that the command gives another value than its default
                lines = config.read_text()
                assert "  epochs: 2\n" in lines
                config.write_text(lines.replace("  epochs: 2\n", ""))
            if name == "other":
                config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
            if name == "damaged":
                config.write_text("env: [")
            os.utime(config, (2e9 + tick, 2e9 + tick))
        RunFolder(runs / "finished").write_summary({})
        running = RunFolder.create(runs / "running", resume=True)
        for expected in ("newer", "older"):
            assert "resumed at frame 120\n" in auto().stderr
            assert (runs / expected / "summary.json").exists()
        # now there is none
        assert "no unfinished run of this configuration; a new one starts" in auto().stderr
        running.close()
        finished = {path.parent.name for path in runs.glob("*/summary.json")}
        assert finished == {"older", "newer", "finished"}
        assert len(list(Path("outputs").rglob("summary.json"))) == 4

    def test_sweep(self, tmp_path: Path) -> None:
        """Finished members are repeated, unfinished ones resumed."""
        seeds = ("memory=mlp", "experiment.seed=0,1")
        arguments = ("-m", *SMALL, "experiment.total_frames=240", *seeds)
        auto = ("experiment.resume=auto", f"hydra.sweep.dir={tmp_path / 'sweep'}")
        first = command("ppo_shm.py", *arguments, *auto)
        assert first.code == 0, first.stderr
        (second,) = [path.parent for path in (tmp_path / "sweep").glob("1_*/summary.json")]
        (second / "summary.json").unlink()
        result = command("ppo_shm.py", *arguments, *auto)
        assert result.stderr.count("resumed at frame 240") == 1
        lines = [x.stdout.splitlines() for x in (first, result)]
        assert len(lines[0]) == len(lines[1]) == 2
        assert lines[0][0] == lines[1][0]


def test_episodes_of_other_packages_start_anew(tmp_path: Path) -> None:
    """Their state is not tensors: the run is valid, but another one."""
    pytest.importorskip("gymnasium", reason="comes with the extra popgym")
    folder = tmp_path / "run"
    stop_after(folder, 2, "env=gym", "experiment.total_frames=480")
    first = without_time(folder)
    result = resume(folder)
    assert result.code == 0, result.stderr
    assert without_time(folder).startswith(first)
    assert [int(row["frames"]) for row in read_metrics(folder)] == [120, 240, 360, 480]
