"""Workers of Ray are those of this machine, elsewhere."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.modules import set_recurrent_mode

from recipes import ppo_shm
from tests._processes import Child, wait_until
from tests.recipes._helpers import read_metrics, saved_state, train, without_time
from tests.training._helpers import make_operator, time_limit
from tests.training.test_collection import Failing, check_same, collect, make_collector
from torchrl_shm import WindEnv
from torchrl_shm.training import RolloutCollector, ray_workers

# starts Ray on this machine, which takes a quarter of a minute
pytestmark = pytest.mark.slow


def children(of: int | None = None) -> dict[int, str]:
    """Command lines of all processes below one, by their numbers."""
    found: dict[int, str] = {}
    listed = subprocess.run(
        ["ps", "-wweo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    parents = {os.getpid() if of is None else of}
    while parents:
        below = {
            int(pid): args
            for pid, parent, state, args in rows
            if int(parent) in parents and not state.startswith("Z")
        }
        found |= below
        parents = {*below}
    return {pid: args for pid, args in found.items() if not args.startswith("ps ")}


def find(words: str) -> int:
    """The first process below this one whose command line has these words."""
    return next(pid for pid, args in sorted(children().items()) if words in args)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    pytest.importorskip("ray", reason="comes with the extra ray")
    before = children()
    with time_limit(300):
        yield
        ours = ("ray::", "/raylet", "gcs_server", "site-packages/ray/")

        def left() -> list[str]:
            now = {pid: args for pid, args in children().items() if pid not in before}
            return [args for args in now.values() if any(name in args for name in ours)]

        wait_until(lambda: not left(), seconds=30)


def lose_the_head() -> None:
    collector = make_collector(backend="ray", device="cpu", total_frames=10**8)
    for _ in collector:
        if collector._frames == 40:
            os.kill(find("/gcs_server"), signal.SIGKILL)


def test_a_head_that_goes_away(tmp_path: Path) -> None:
    """Workers do without it for some seconds; then Ray ends the process with a line.

    The first of the file, for Ray does not start in a fork of a process that has used it.
    """
    with Child(lose_the_head, tmp_path / "out") as child:
        assert child.wait(120) == 1, child.text()
        assert "Failed to connect to GCS within 30 seconds" in child.text()


def test_equal_to_processes_and_goes_on() -> None:
    """The same seeds, the same data; new parameters, a saved state, and nothing printed."""
    options: dict[str, Any] = {"device": "cpu", "total_frames": 120}
    expected = collect(backend="multi_sync", **options)
    first = make_collector(backend="ray", **options)
    try:
        batches = iter(first)
        one = next(batches)
        state = copy.deepcopy(first.state_dict())
        rest = list(batches)
        check_same([one, *rest], expected)
        assert one.device == expected[0].device
        policy = first._policy
        acted = one["action_log_prob"].clone()
        with torch.no_grad(), set_recurrent_mode(True):
            again = policy.get_dist(one).log_prob(one["action"])
        torch.testing.assert_close(acted, again, rtol=2e-5, atol=2e-5)
    finally:
        first.close()
    second = make_collector(backend="ray", **options)
    try:
        second.load_state_dict(state)
        check_same(list(second), rest)
    finally:
        second.close()


def test_life(capfd: pytest.CaptureFixture[str]) -> None:
    """New parameters, the error of an environment as it is, the end."""
    operator = make_operator()
    policy = operator.get_policy_operator()
    collector = RolloutCollector(
        partial(Failing, max_steps=15, fail_at=25), policy, num_envs=4, rollout_length=10,
        total_frames=200, backend="ray", device="cpu",
    )  # fmt: skip
    try:
        batches = iter(collector)
        next(batches)
        with torch.no_grad():
            head: Any = operator.get_policy_head()
            for name, value in head.named_parameters():
                value.fill_(3.0 if name.endswith("layers.4.bias") else 0.0)
        collector.update_policy()
        assert (next(batches)["loc"] == 3).all()
        with pytest.raises(ZeroDivisionError, match=r"^the wind has stopped$"):
            next(batches)
    finally:
        collector.close()
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_those_that_run_ahead() -> None:
    operator = make_operator()
    policy = operator.get_policy_operator()
    make = partial(WindEnv, max_steps=15)
    options: dict[str, Any] = {
        "num_envs": 4, "rollout_length": 10, "total_frames": 200, "backend": "ray_async",
        "device": "cpu",
    }  # fmt: skip
    collector = RolloutCollector(make, policy, **options)
    try:
        assert (collector.frames_per_batch, collector.num_batches) == (20, 10)
        batches = iter(collector)
        seen = [next(batches) for _ in range(3)]
        assert sum(bool(batch["is_init"][:, 0].all()) for batch in seen) == 2
        with torch.no_grad():
            head: Any = operator.get_policy_head()
            for name, value in head.named_parameters():
                value.fill_(3.0 if name.endswith("layers.4.bias") else 0.0)
        collector.update_policy()
        # what was under way is of the old policy
        assert ([*batches][-1]["loc"] == 3).all()
    finally:
        collector.close()


@pytest.mark.parametrize("victim", ["ray::_Worker", "/raylet/raylet"])
def test_ends_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, victim: str
) -> None:
    """A few words within a minute, all updates saved, and the run goes on as if nothing was."""
    check_ratio, updates = ppo_shm.check_ratio, iter(range(100))

    def kill(term: Any) -> float:
        if next(updates) == 2:
            os.kill(find(victim), signal.SIGKILL)
        return check_ratio(term)

    folder, straight = tmp_path / "run", tmp_path / "straight"
    collector = partial(RolloutCollector, backend="ray")
    with monkeypatch.context() as patch:
        patch.setattr(ppo_shm, "check_ratio", kill)
        with pytest.raises(RuntimeError, match="Ray") as caught:
            train(folder, collector=collector)
    assert len(str(caught.value).splitlines()) <= 3
    assert saved_state(folder)["updates"] >= 2
    assert "is saved, go on with experiment.resume=" in capsys.readouterr().err
    if victim == "ray::_Worker":
        train(folder, collector=collector, resume=str(folder))
        train(straight, collector=collector)
        assert without_time(folder) == without_time(straight)
        rows = read_metrics(straight)
        assert all(abs(float(row["max_ratio"]) - 1) <= 1e-4 for row in rows)


def test_too_few_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray_workers, "_SECONDS_TO_WAIT_FOR_CPUS", 1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error")
    try:
        with pytest.raises(RuntimeError, match="a CPU for each of 2 workers, and Ray has 1 free"):
            make_collector(backend="ray", device="cpu")
        # it is not ended with the collector that it was not started for
        assert ray.is_initialized()
    finally:
        ray.shutdown()
