"""A run that was killed and taken up is the run that was not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests._processes import Child, wait_until
from tests.configs.test_groups import MEMBERS
from tests.recipes._helpers import (
    Result,
    check_same_runs,
    command,
    process,
    read_metrics,
    train,
    without_time,
)
from torchrl_shm.training import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")

# six updates; rows end in mid-episode, and checkpoints in mid-run
SMALL = (
    "algo.total_frames=720", "algo.num_envs=6", "algo.rollout_length=20", "algo.sequences_per_minibatch=3",
    "algo.epochs=2", "algo.checkpoint_interval=2", "algo.num_test_episodes=6",
)  # fmt: skip
FRAMES_PER_UPDATE = 120

# a task in the plane, one on a grid, one of cards; memories shared by actor and critic or not
CASES = {
    "wind": ("env=wind", "memory=shm"),
    "wind-separate": ("env=wind", "memory=shm", "algo.shared_memory=false"),
    "grid": ("env=key_to_door_100", "memory=shm"),
    "grid-separate": ("env=key_to_door_100", "memory=gru", "algo.shared_memory=false"),
    "popgym": ("env=popgym_repeat_previous_easy", "memory=shm"),
    "popgym-separate": ("env=popgym_count_recall_easy", "memory=shm", "algo.shared_memory=false"),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing stopped."""

    @cache
    def make(*arguments: str) -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        result = start(folder, *arguments)
        assert result.code == 0, result.stderr
        return folder

    return make


def start(folder: Path, *arguments: str) -> Result:
    return command("ppo_shm.py", *SMALL, *arguments, f"hydra.run.dir={folder}")


def resume(folder: Path) -> Result:
    return command("ppo_shm.py", f"resume={folder}")


def num_rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    # the line of names is none, nor is a line that is not written to its end
    return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0


def kill(folder: Path, *arguments: str, after: int = 3, wait: float = 0.02) -> None:
    """Start a run and kill it in the update after the given number of them."""

    with Child(partial(start, folder, *arguments), folder.with_name("out")) as child:
        wait_until(lambda: num_rows(folder) >= after, child)
        time.sleep(wait)
        child.process.kill()
        assert child.wait() == -signal.SIGKILL, child.text()
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(straight: Any, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    kill(folder, *CASES[case])
    config = (folder / "config.yaml").read_bytes()
    before = num_rows(folder)
    result = resume(folder)
    assert result.code == 0, result.stderr
    (at,) = [int(line.split()[-1]) for line in result.stderr.splitlines() if "resumed" in line]
    # from the checkpoint, not from the row that was written last
    assert at % (2 * FRAMES_PER_UPDATE) == 0
    assert FRAMES_PER_UPDATE * (before - 2) <= at <= FRAMES_PER_UPDATE * before
    check_same_runs(folder, straight(*CASES[case]))
    assert (folder / "config.yaml").read_bytes() == config
    # nor is the folder that Hydra made for a new run left
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_killed_again_and_again(straight: Any, tmp_path: Path) -> None:
    """Also in another process, which starts with nothing of the first one."""
    folder = tmp_path / "run"
    kill(folder, *CASES["wind"])
    with Child(partial(resume, folder)) as child:
        wait_until(lambda: num_rows(folder) >= 5, child)
        child.process.kill()
        child.wait()
    result = process("ppo_shm.py", f"resume={folder}", cwd=tmp_path)
    assert (result.code, result.stderr.count("resumed at frame")) == (0, 1)
    check_same_runs(folder, straight(*CASES["wind"]))


# nothing keeps the products of these gates near 1, and a warning says so
GROWING = ("shm_constant", "shm_fixed", "shm_neural")
GROWS = pytest.mark.filterwarnings("ignore:.*has grown to")


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(name, marks=GROWS if name in GROWING else ())
        for group, name in MEMBERS
        if group == "memory"
    ],
)
def test_every_memory(tmp_path: Path, memory: str) -> None:
    for name in ("run", "straight"):
        if name == "run":
            kill(tmp_path / name, f"memory={memory}")
            assert resume(tmp_path / name).code == 0
        else:
            assert start(tmp_path / name, f"memory={memory}").code == 0
    check_same_runs(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("env", [name for group, name in MEMBERS if group == "env"])
def test_every_task(tmp_path: Path, env: str) -> None:
    if env == "gym" or "/" in env:
        pytest.skip("its state is no tensors; see test_episodes_of_others_start_anew")
    start(tmp_path / "straight", f"env={env}")
    kill(tmp_path / "run", f"env={env}")
    assert resume(tmp_path / "run").code == 0
    check_same_runs(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
def test_workers(tmp_path: Path) -> None:
    """Their generators, memories and episodes are saved where they are."""
    arguments = ("env=wind", "collector=multi_sync")
    start(tmp_path / "straight", *arguments)
    kill(tmp_path / "run", *arguments)
    assert resume(tmp_path / "run").code == 0
    check_same_runs(tmp_path / "run", tmp_path / "straight")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["wind", "wind-separate", "popgym"])
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    # read when CUDA is first used, so this needs a process whose first test it is, or the variable
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        start(tmp_path / "straight", *CASES[case], "device=cuda")
        # a fork cannot use a GPU that this process has used
        stop_after(tmp_path / "run", 3, *CASES[case], "device=cuda")
        assert resume(tmp_path / "run").code == 0
    finally:
        torch.use_deterministic_algorithms(False)
    check_same_runs(tmp_path / "run", tmp_path / "straight")


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
    assert f"stopped after update {updates}," in result.stderr


class TestResume:
    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Path:
        folder = tmp_path / "run"
        stop_after(folder, 3)
        return folder

    def test_interrupted(self, stopped: Path, straight: Any) -> None:
        """Ctrl-C loses no update, whatever the interval."""
        result = resume(stopped)
        assert f"resumed at frame {3 * FRAMES_PER_UPDATE}\n" in result.stderr
        check_same_runs(stopped, straight())

    def test_time_goes_on(self, stopped: Path) -> None:
        before = [float(row["seconds"]) for row in read_metrics(stopped)]
        resume(stopped)
        seconds = [float(row["seconds"]) for row in read_metrics(stopped)]
        assert seconds[:3] == before
        assert seconds == sorted(seconds)
        summary = RunFolder(stopped).summary or {}
        assert summary["seconds"] >= round(seconds[-1], 1)

    def test_damaged_newest(self, stopped: Path, straight: Any) -> None:
        """The one before it is used, and the curve is still the same."""
        newest = stopped / "checkpoints" / f"checkpoint-{3 * FRAMES_PER_UPDATE:012d}"
        file = newest / "components" / "0000-state" / "state.pt"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.warns(UserWarning, match=f"{newest} is damaged: .*; using checkpoint-0*240"):
            result = resume(stopped)
        assert "resumed at frame 240\n" in result.stderr
        check_same_runs(stopped, straight())

    def test_crafted_checkpoint(self, stopped: Path, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "exploded"),)

        from tests.training.test_checkpoints import STATE, write_sums

        for path in (stopped / "checkpoints").iterdir():
            torch.save({"state": Bomb()}, path / STATE)
            write_sums(path)
        with pytest.raises(pickle.UnpicklingError, match="holds more than data and is refused"):
            train(stopped, resume=str(stopped))
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("override", ["seed=1", "algo.epochs=3", "memory=gru"])
    def test_other_values_are_refused(self, stopped: Path, override: str) -> None:
        before = (stopped / "metrics.csv").read_bytes()
        result = command("ppo_shm.py", f"resume={stopped}", override)
        assert result.code == 1
        assert (
            f"resume=<folder> goes on with that run's configuration; leave out ['{override}']"
            in (result.stderr)
        )
        assert (stopped / "metrics.csv").read_bytes() == before

    def test_running(self, stopped: Path) -> None:
        run = RunFolder.create(stopped, resume=True)
        result = resume(stopped)
        run.close()
        assert result.code == 1
        assert f"{stopped} is in use: a run is going on there" in result.stderr
        assert not (stopped / "summary.json").exists()

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("env", {"_target_": "os.system", "_args_": ["false"]}, "would build 'os.system'"),
            ("seed", "${oc.env:HOME}", "has interpolations"),
        ],
    )
    def test_tampered_configuration(
        self, stopped: Path, key: str, value: Any, message: str
    ) -> None:
        config = yaml.safe_load((stopped / "config.yaml").read_text())
        (stopped / "config.yaml").write_text(yaml.safe_dump(config | {key: value}))
        result = resume(stopped)
        assert result.code == 1
        assert message in result.stderr

    def test_no_run(self, tmp_path: Path) -> None:
        result = resume(tmp_path / "nothing")
        assert result.code == 1
        assert f"{tmp_path / 'nothing' / 'config.yaml'} does not exist" in result.stderr
        assert not (tmp_path / "nothing").exists()


def test_before_the_first_checkpoint(straight: Any, tmp_path: Path) -> None:
    """It starts again, over what was there."""
    folder = tmp_path / "run"
    kill(folder, "algo.checkpoint_interval=100")
    assert not (folder / "checkpoints").exists()
    assert num_rows(folder) >= 3
    result = resume(folder)
    assert (result.code, "resumed at frame 0\n" in result.stderr) == (0, True)
    assert without_time(folder) == without_time(straight())


def test_finished(straight: Any, tmp_path: Path) -> None:
    """Its summary is printed again, and nothing is touched."""
    folder = Path(shutil.copytree(straight(), tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = resume(folder)
    assert (result.code, result.stderr) == (0, "")
    assert result.summary == RunFolder(folder).summary
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_with_results_is_not_overwritten(straight: Any) -> None:
    folder = straight()
    before = (folder / "metrics.csv").read_bytes()
    result = start(folder)
    assert result.code == 1
    assert f"is of another run, which would be overwritten; go on with it by resume={folder}" in (
        result.stderr
    )
    assert (folder / "metrics.csv").read_bytes() == before


class TestAuto:
    """`resume=auto` is the same command, however often a scheduler starts it."""

    def test_same_folder(self, straight: Any, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        first = start(folder, "resume=auto", "algo.total_frames=240")
        assert "no unfinished run of this configuration; a new one starts" in first.stderr
        again = start(folder, "resume=auto", "algo.total_frames=240")
        assert again.summary == first.summary
        # of another length it is another run
        other = start(folder, "resume=auto")
        assert other.code == 1
        assert "is of another run" in other.stderr

    def test_killed(self, straight: Any, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        kill(folder, "resume=auto")
        result = start(folder, "resume=auto")
        assert "resumed at frame" in result.stderr
        check_same_runs(folder, straight())

    def test_newest_unfinished_of_the_same_configuration(self, tmp_path: Path) -> None:
        arguments = ("algo.total_frames=360", "algo.checkpoint_interval=1")

        def stopped(name: str, *more: str) -> Path:
            folder = Path("outputs") / "ppo_shm" / "2000-01-01" / name
            stop_after(folder, 2, *arguments, *more)
            # files are written within one tick of the clock
            number = len(list(folder.parent.iterdir()))
            os.utime(folder / "config.yaml", (number, number))
            return folder

        older, newer = stopped("older"), stopped("newer")
        other = stopped("other", "seed=1")
        finished = Path(shutil.copytree(newer, newer.with_name("finished")))
        command("ppo_shm.py", f"resume={finished}")
        os.utime(finished / "config.yaml", (99, 99))
        damaged = Path(shutil.copytree(newer, newer.with_name("damaged")))
        (damaged / "config.yaml").write_text("env: [")

        def auto() -> Result:
            return command("ppo_shm.py", *SMALL, *arguments, "resume=auto")

        def done() -> set[str]:
            return {path.parent.name for path in older.parent.glob("*/summary.json")}

        for name in ("newer", "older"):
            before = done()
            result = auto()
            assert "resumed at frame 240\n" in result.stderr
            assert done() - before == {name}
        # now there is none
        assert "a new one starts" in auto().stderr
        assert not (other / "summary.json").exists()
        assert len(list(Path("outputs/ppo_shm").glob("*/*/summary.json"))) == 4

    def test_running_ones_are_left_alone(self, tmp_path: Path) -> None:
        folder = Path("outputs/ppo_shm/2000-01-01/run")
        arguments = ("algo.total_frames=240", "algo.checkpoint_interval=1")
        stop_after(folder, 1, *arguments)
        run = RunFolder.create(folder, resume=True)
        result = command("ppo_shm.py", *SMALL, *arguments, "resume=auto")
        run.close()
        assert "a new one starts" in result.stderr
        assert not (folder / "summary.json").exists()

    def test_sweep(self, tmp_path: Path) -> None:
        """Finished members are repeated, unfinished ones resumed."""
        arguments = ("-m", *SMALL, "algo.total_frames=360", "seed=0,1", "resume=auto")
        sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
        assert command("ppo_shm.py", *arguments, sweep).code == 0
        (second,) = [path.parent for path in (tmp_path / "sweep").glob("1_*/summary.json")]
        (second / "summary.json").unlink()
        result = command("ppo_shm.py", *arguments, sweep)
        assert result.stderr.count("resumed at frame 360") == 1
        assert [json.loads(line)["seed"] for line in result.stdout.splitlines()] == [0, 1]


def test_episodes_of_others_start_anew(tmp_path: Path) -> None:
    """Environments that are no tensors: the run is valid, but another one."""
    pytest.importorskip("gymnasium", reason="comes with the extra popgym")
    folder = tmp_path / "run"
    stop_after(folder, 2, "env=gym", "algo.total_frames=480")
    first = without_time(folder)
    result = resume(folder)
    assert result.code == 0, result.stderr
    assert without_time(folder).startswith(first)
    assert [int(row["frames"]) for row in read_metrics(folder)] == [120, 240, 360, 480]
    state = RunFolder(folder).load_checkpoint()
    assert state["frames"] == 480
