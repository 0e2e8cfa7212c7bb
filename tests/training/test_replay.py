"""A replay buffer that is saved in parts is the buffer that was never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests._disks import small_disk
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.networks import get_behavior, make_soft_actor_critic
from torchrl_shm.training import ReplayStorage, RolloutCollector, SequenceReplay

both_storages = pytest.mark.parametrize("storage", ["memory", "disk"])


def make(folder: Path, storage: ReplayStorage = "memory", **options: Any) -> SequenceReplay:
    sizes: dict[str, Any] = {"num_sequences": 10, "batch_size": 4, "keep_checkpoints": 2} | options
    return SequenceReplay(folder, keys=["number", ("next", "reward")], storage=storage, **sizes)


def rows(first: int, count: int = 3, width: int = 1) -> TensorDict:
    number = torch.arange(first, first + count).reshape(-1, 1, 1).expand(-1, 5, width)
    next_ = TensorDict({"reward": 0.5 * number, "other": number}, [count, 5])
    return TensorDict({"number": number.contiguous(), "next": next_, "more": number}, [count, 5])


def kept(replay: SequenceReplay) -> list[int]:
    sample: Any = torch.cat([replay.sample() for _ in range(60)])
    assert set(sample.keys(True, True)) == {"number", ("next", "reward")}
    assert torch.equal(sample["next", "reward"], 0.5 * sample["number"])
    return sorted({int(x) for x in sample["number"][:, 0].flatten()})


@both_storages
def test_newest_sequences_are_kept(tmp_path: Path, storage: ReplayStorage) -> None:
    replay = make(tmp_path, storage)
    for batch in range(5):
        replay.extend(rows(3 * batch))
    assert (len(replay), replay.count) == (10, 15)
    assert kept(replay) == list(range(5, 15))
    assert replay.sample().shape == (4, 5)


@both_storages
@pytest.mark.parametrize("saves", [(1,), (2, 5), (3, 4, 7, 8)])
@torch.no_grad()
def test_restored(tmp_path: Path, storage: ReplayStorage, saves: tuple[int, ...]) -> None:
    """With the same numbers in the same places, so that the same are drawn and replaced."""
    replay, state = make(tmp_path / "run", storage), {}
    for batch in range(8):
        replay.extend(rows(3 * batch))
        if batch + 1 in saves:
            state = replay.state_dict()
    # what came after the checkpoint is lost, and made again
    other = make(tmp_path / "run", storage)
    other.load_state_dict(state)
    straight = make(tmp_path / "straight")
    for batch in range(saves[-1]):
        straight.extend(rows(3 * batch))
    for batch in range(saves[-1], saves[-1] + 6):
        for seed in range(5):
            torch.manual_seed(seed)
            expected = straight.sample()
            torch.manual_seed(seed)
            assert torch.equal(other.sample()["number"], expected["number"])
        for one in (straight, other):
            one.extend(rows(3 * batch))


def test_files(tmp_path: Path) -> None:
    """Each is written once, and goes when no checkpoint needs it."""

    def files() -> dict[str, int]:
        found = sorted(tmp_path.glob("rows-*.pt"))
        return {path.name[5:30]: path.stat().st_mtime_ns for path in found}

    replay = make(tmp_path)
    states: list[Any] = []
    for batch in range(10):
        replay.extend(rows(3 * batch))
        before = files()
        assert list(before)[-1] == f"{3 * batch:012d}-{3 * batch + 3:012d}"
        states.append(replay.state_dict())
        assert files().items() <= before.items()
    assert len(files()) <= 7
    # a run may go back to an older checkpoint
    for state in states[:-3:-1]:
        other = make(tmp_path)
        other.load_state_dict(state)
        assert kept(other) == list(range(state["count"] - 10, state["count"]))
    # and all behind it is made again
    state = states[-2]
    other = make(tmp_path)
    other.load_state_dict(state)
    assert max(name for name in files()).endswith(f"{27:012d}")
    assert replay.state_dict()["count"] == 30


@pytest.mark.parametrize("saved", [True, False])
def test_half_a_file_of_a_killed_run(tmp_path: Path, saved: bool) -> None:
    replay = make(tmp_path)
    if saved:
        replay.extend(rows(0))
    state = replay.state_dict()
    half = tmp_path / f"rows-{3:012d}-{6:012d}-{16 * '0'}.pt.part"
    half.write_bytes(b"x")
    other = make(tmp_path)
    if saved:
        other.load_state_dict(state)
    else:
        other.extend(rows(0))
    assert len(other) == 3
    assert not half.exists()


def test_empty(tmp_path: Path) -> None:
    replay = make(tmp_path / "none")
    state = replay.state_dict()
    replay.load_state_dict(state)
    assert (len(replay), list(tmp_path.iterdir())) == (0, [])


class TestMistakes:
    def test_twice(self, tmp_path: Path) -> None:
        """Two files with the same sequences: nobody knows which of them were drawn from."""
        replay = make(tmp_path)
        replay.extend(rows(0))
        replay.extend(rows(3))
        state = replay.state_dict()
        first, _ = sorted(tmp_path.iterdir())
        first.with_name(f"{first.name[:-19]}{16 * '0'}.pt").write_bytes(first.read_bytes())
        with pytest.raises(RuntimeError, match="that another file of the folder holds as well"):
            make(tmp_path).load_state_dict(state)

    def test_damaged(self, tmp_path: Path) -> None:
        replay = make(tmp_path)
        replay.extend(rows(0))
        state = replay.state_dict()
        (path,) = tmp_path.iterdir()
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"x")
        with pytest.raises(RuntimeError, match=r"rows-.*\.pt is damaged"):
            make(tmp_path).load_state_dict(state)
        path.unlink()
        with pytest.raises(RuntimeError, match="lacks sequences 0 to 3 of the replay buffer"):
            make(tmp_path).load_state_dict(state)

    def test_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="storage='tape' is unknown"):
            make(tmp_path, "tape")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="num_sequences must be at least 1, got 0"):
            make(tmp_path, num_sequences=0)

    @both_storages
    def test_full_disk(self, tmp_path: Path, storage: ReplayStorage) -> None:
        """What was saved before is still there."""
        with small_disk(tmp_path / "disk", "1m") as disk:
            replay = make(disk / "replay", storage, num_sequences=400, keep_checkpoints=9)
            replay.extend(rows(0, 10, 100))
            state = replay.state_dict()
            more = (rows(10 * batch, 10, 100) for batch in range(1, 40))
            with pytest.raises(OSError, match="free some space") as caught:
                _ = [(replay.extend(batch), replay.state_dict()) for batch in more]
            assert "cannot write rows-" in str(caught.value)
            assert replay.count % 10 == 0
            assert not list(disk.rglob("*.part"))
            other = make(disk / "replay", num_sequences=400)
            other.load_state_dict(state)
            assert kept(other) == list(range(10))


def test_size_of_a_million_steps(tmp_path: Path) -> None:
    """Of SHM with 128 x 128 floats for actor and critic, in sequences of 100 steps."""
    operator = make_soft_actor_critic(WindEnv(2), SHMModule_128)
    collector = RolloutCollector(
        WindEnv, get_behavior(operator), num_envs=2, rollout_length=100, total_frames=200
    )
    (batch,) = collector
    keys = [*operator.actor.in_keys, *operator.critic.in_keys, "action", ("next", "reward")]
    keys += [("next", "done"), ("next", "terminated"), *(("next", x) for x in operator.policy_keys)]
    replay = SequenceReplay(tmp_path, num_sequences=4, batch_size=2, keys=keys)
    replay.extend(batch)
    in_memory = sum(x.nbytes for x in replay.sample().values(True, True)) / 200
    # the part that no sequence of that memory can do without
    assert in_memory > 2 * 128 * 128 * 4 / 100
    assert in_memory * 1e6 < 2e9
    replay.state_dict()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size / 200 * 1e6 < 2e9


def SHMModule_128(**options: Any) -> Any:
    return SHMModule(memory_size=128, **options)
