"""Processes that learn together: as one would, and to the end or to the last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from recipes import ppo_shm
from tests._disks import small_disk
from tests._processes import Child, ranks, wait_until
from tests.recipes._helpers import (
    ROOT,
    TINY,
    check_same_runs,
    command,
    saved_state,
    train,
    without_time,
)
from tests.recipes.test_sac_shm import train as train_sac
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import RolloutCollector
from torchrl_shm.training.ranks import num_ranks, rank

LONG = {"total_frames": 160 * 1000}


def batch_of_eight() -> TensorDictBase:
    torch.manual_seed(1)
    make = partial(WindEnv, max_steps=30, goal_radius=0.9, shaping_radii=(0.001, 10.0))
    operator = make_actor_critic(make(8), SHMModule)
    rows = RolloutCollector(
        make, get_behavior(operator), num_envs=8, rollout_length=20, total_frames=160
    )
    (batch,) = rows
    rows.close()
    return batch


class Recorded:
    """Gives every process its part of a batch."""

    num_batches = 2

    def __init__(self, *_: Any, batch: TensorDictBase, **__: Any) -> None:
        self.own = batch.chunk(num_ranks())[rank()]
        self.frames_per_batch = self.own.numel()

    def __iter__(self) -> Iterator[TensorDictBase]:
        for _ in range(self.num_batches):
            yield self.own.clone().refine_names(..., "time")

    def update_policy(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...

    def close(self) -> None: ...


def test_two_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same data: losses, gradients, and the networks after two updates."""
    # others acted
    monkeypatch.setattr(ppo_shm, "check_ratio", lambda term: float(term["max_ratio"]))
    batch = batch_of_eight()
    options: dict[str, Any] = {
        "collector": partial(Recorded, batch=batch), "sequences_per_minibatch": 8, "epochs": 2,
        "total_frames": 320,
    }  # fmt: skip
    train(tmp_path / "one", **options)
    with ranks(partial(train, tmp_path / "two", **options), tmp_path) as children:
        assert [child.wait() for child in children] == [0, 0], children[0].text()
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    for name in ("loss_objective", "loss_critic", "grad_norm", "kl_approx", "clip_fraction"):
        assert one[0][name] == pytest.approx(two[0][name], rel=1e-5, abs=1e-5), name
    one, two = (
        TensorDict(saved_state(tmp_path / name)["operator"]).flatten_keys()
        for name in ("one", "two")
    )
    assert set(one.keys()) == set(two.keys())
    for name in one.keys():
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)


def read(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    both(folder / "run", folder)
    return folder / "run"


class TestResume:
    # the first one writes, and the others find one another through it
    @pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_one_is_killed(self, number: int, straight: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with ranks(partial(train, folder), tmp_path) as children:
            wait_until(lambda: num_rows(folder) == 2, children[number])
            children[number].signal(signal.SIGKILL)
            other = children[1 - number]
            # torchrun names the one that died
            assert other.wait(60) == 1
            assert "ends, since another one has died" in other.text()
            assert "Traceback" not in other.text()
        both(folder, tmp_path, resume=str(folder))
        check_same(folder, straight)

    def test_a_signal_to_one_stops_both(
        self, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_ratio = ppo_shm.check_ratio

        def take_long(term: TensorDictBase) -> float:
            time.sleep(0.6)
            return check_ratio(term)

        monkeypatch.setattr(ppo_shm, "check_ratio", take_long)
        folder = tmp_path / "run"
        with ranks(partial(train, folder), tmp_path) as children:
            wait_until(lambda: num_rows(folder) == 2, children[1])
            children[1].signal(signal.SIGTERM)
            codes = [child.wait() for child in children]
            assert codes == [0, 0], [text(child) for child in children]
            assert "is saved, go on with" in children[0].text()
        assert saved_state(folder)["updates"] in (2, 3)
        both(folder, tmp_path, resume=str(folder))
        check_same(folder, straight)

    def test_another_number_of_processes(self, straight: Path, tmp_path: Path) -> None:
        (straight / "summary.json").rename(tmp_path / "summary.json")
        try:
            with pytest.raises(RuntimeError, match=r"trained by 2 processes.*nproc_per_node=2"):
                train(straight, resume=str(straight))
        finally:
            (tmp_path / "summary.json").rename(straight / "summary.json")

    def test_all_have_the_summary_of_a_finished_run(self, straight: Path, tmp_path: Path) -> None:
        both(straight, tmp_path, resume=str(straight))
        assert '"frames": 640' in (tmp_path / "rank0.txt").read_text()
        assert (tmp_path / "rank1.txt").read_text() == ""


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path) -> None:
    both(tmp_path / "straight", tmp_path)
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        folder = tmp_path / str(i)
        number, after = (int(torch.randint(n, (), generator=generator)) for n in (2, 1500))
        with ranks(partial(train, folder), tmp_path) as children:
            wait_until(folder.exists, children[0])
            children[number].process.join(after / 1000)
            children[number].signal(signal.SIGKILL)
            for child in children:
                child.wait(60)
        both(folder, tmp_path, **({"resume": str(folder)} if folder.exists() else {}))
        check_same(folder, tmp_path / "straight")


def test_a_full_disk(tmp_path: Path) -> None:
    """It is that of the first process, which writes."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        start = partial(train, disk / "run", keep_checkpoints=99, **LONG)
        with ranks(start, tmp_path / "out") as children:
            codes = [child.wait(60) for child in children]
            assert codes == [1, 1]
            assert "cannot write" in children[0].text()
            assert children[1].text() == ""
        assert saved_state(disk / "run")["updates"] > 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_envs": 7}, "experiment.num_envs=7 must be a multiple of the 2 processes"),
            (
                {"sequences_per_minibatch": 3},
                "algo.sequences_per_minibatch=3 must be a multiple of the 2 processes",
            ),
            ({"on_nonfinite": "skip"}, "on_nonfinite=skip leaves minibatches out"),
        ],
    )
    def test_what_cannot_be_shared_out(
        self, options: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with ranks(partial(train, tmp_path / "run", **options), tmp_path) as children:
            assert [child.wait() for child in children] == [1, 1]
            assert message in children[0].text()

    def test_a_recipe_for_one_process(self, tmp_path: Path) -> None:
        with ranks(partial(train_sac, tmp_path / "run"), tmp_path) as children:
            assert [child.wait() for child in children] == [1, 1]
            assert "this recipe learns on one process, and there are 2" in children[0].text()

    def test_a_sweep(self, tmp_path: Path) -> None:
        def sweep() -> None:
            options = ("-m", "env=wind", *TINY, f"hydra.sweep.dir={tmp_path / 'sweep'}")
            result = command("ppo_shm.py", *options)
            print(result.stderr)

        with ranks(sweep, tmp_path) as children:
            assert [child.wait() for child in children] == [0, 0]
            assert "a sweep (-m) cannot be started by torchrun" in children[0].text()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """One more word, and no folder but that of the run."""
    options = ("env=wind", *TINY, "experiment.num_test_episodes=4")
    found = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(ROOT / "recipes" / "ppo_shm.py"), *options,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.count('"frames": 640') == 1
    (run,) = tmp_path.glob("outputs/ppo_shm/*/*")
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "learning_curve.png", "metrics.csv", "summary.json",
    ]  # fmt: skip
    assert float(read(run)[0]["max_ratio"]) == pytest.approx(1, abs=1e-4)


def both(folder: Path, output: Path, **options: Any) -> None:
    with ranks(partial(train, folder, **options), output) as children:
        codes = [child.wait(120) for child in children]
    assert codes == [0, 0], [text(child) for child in children]


def text(child: Child) -> str:
    return child.text()[-2000:]


def num_rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0


def check_same(one: Path, other: Path) -> None:
    check_same_runs(one, other)
    assert without_time(one).count("\n") == 5
