"""Key-to-Door and Visual Match against recordings of the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from tests.envs._contract import Contract, inject, step
from torchrl_shm.envs import KeyToDoorEnv, VisualMatchEnv, _grid
from torchrl_shm.envs._grid import APPLE_CELLS, GridEnv

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDINGS: dict[str, tuple[type[GridEnv], dict[str, Any]]] = {
    "key_to_door_shm": (KeyToDoorEnv, {}),
    "key_to_door_pomdp_baselines": (KeyToDoorEnv, {"frames": (15, 60, 10)}),
    "visual_match_passive_shm": (VisualMatchEnv, {}),
    "visual_match_active_60": (VisualMatchEnv, {"frames": (15, 60, 10), "passive": False}),
}


def load(name: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def start(name: str, **options: Any) -> tuple[GridEnv, Any, dict[str, Tensor]]:
    recorded = load(name)
    make, constants = RECORDINGS[name]
    count = len(recorded["action"])
    env = make(count, **constants, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
    entries = {"player": recorded["player0"], "apples": recorded["apples"]}
    if "key" in recorded:
        entries["key"] = recorded["key"]
    else:
        entries["target"] = recorded["target"]
        entries["target_position"] = recorded["tpos"]
        entries["colors"] = recorded["perm"]
    return env, inject(env, **entries), recorded


@pytest.mark.parametrize("name", RECORDINGS)
def test_replays_the_recording(name: str) -> None:
    env, data, recorded = start(name)
    assert tuple(recorded["frames"].tolist()) == env.frames
    observations, rewards, dones = [data["observation"]], [], []
    for action in recorded["action"].unbind(1):
        data = env.step(data.set("action", action.long()))["next"]
        observations.append(data["observation"])
        rewards.append(data["reward"].squeeze(-1))
        dones.append(data["done"].squeeze(-1))
    assert torch.equal(torch.stack(observations, 1), recorded["obs"])
    assert torch.equal(torch.stack(rewards, 1).double(), recorded["reward"].double())
    assert torch.equal(data["success"].squeeze(-1), recorded["success"].bool())
    # the recordings have both endings
    assert set(recorded["success"].bool().tolist()) == {False, True}
    done = torch.stack(dones, 1)
    assert done[:, -1].all()
    assert not done[:, :-1].any()
    assert data["terminated"].all()


@pytest.mark.parametrize("name", RECORDINGS)
def test_options_change_only_what_they_name(name: str) -> None:
    _, data, recorded = start(name)
    _, image, _ = start(name, image=True)
    _, numbers, _ = start(name, dtype="float32")
    assert torch.equal(image["observation"].flatten(1), data["observation"])
    assert image["observation"].shape[1:] == (3, 5, 5)
    torch.testing.assert_close(numbers["observation"] * 255, data["observation"].float())
    env, data, _ = start(name, final_reward=5.0, apple_reward=0.5)
    total = torch.zeros(len(recorded["action"]))
    for action in recorded["action"].unbind(1):
        data = env.step(data.set("action", action.long()))["next"]
        total += data["reward"].squeeze(-1)
    success = recorded["success"].double()
    apples = recorded["reward"].double().sum(1) - 10 * success
    torch.testing.assert_close(total.double(), 0.5 * apples + 5 * success)


def test_previous_action_and_reward() -> None:
    env, data, recorded = start("key_to_door_shm")
    assert not data["previous_action"].any()
    assert not data["previous_reward"].any()
    action = recorded["action"][:, 0].long()
    data = step(env, action)
    assert torch.equal(data["previous_action"].argmax(-1), action)
    assert torch.equal(data["previous_reward"], data["reward"])


def test_apples_come_back() -> None:
    env = VisualMatchEnv(1, frames=(1, 200, 1))
    apples = torch.zeros(1, 7, 11, dtype=torch.bool)
    apples[0, 5, 3] = True
    inject(
        env, apples=apples, player=torch.tensor([[2, 5]]), target=torch.tensor([0]),
        target_position=torch.tensor([[1, 5]]), colors=torch.tensor([[0, 1, 2]]),
    )  # fmt: skip
    # first room over; then from (5, 5) two steps to the west
    rewards = [float(step(env, torch.tensor([a]))["reward"]) for a in (0, 2, 2)]
    assert rewards == [0, 0, 1]
    assert not env.apples.any()
    # it lies below the player again 21 steps later and is eaten in the step after
    rewards = [float(step(env, torch.tensor([1]))["reward"]) for _ in range(22)]
    assert rewards == [0] * 21 + [1]


class TestKeyToDoor(Contract):
    @staticmethod
    def make(num_envs: int, **kwargs: Any) -> KeyToDoorEnv:
        return KeyToDoorEnv(num_envs, frames=(4, 9, 3), dtype="float32", **kwargs)


class TestVisualMatch(Contract):
    @staticmethod
    def make(num_envs: int, **kwargs: Any) -> VisualMatchEnv:
        return VisualMatchEnv(num_envs, frames=(4, 9, 3), dtype="float32", passive=False, **kwargs)


class TestSamplers:
    COUNT = 8_000

    def test_apples_take_a_uniform_set_of_places(self) -> None:
        env = KeyToDoorEnv(self.COUNT, seed=0)
        apples = env._draw(self.COUNT)["apples"]
        assert (apples.sum((1, 2)) == 10).all()
        share = apples.double().mean(0)
        places = torch.zeros(7, 11, dtype=torch.bool)
        places[tuple(torch.tensor(APPLE_CELLS).T)] = True
        assert not share[~places].any()
        chance = 10 / 22
        # five standard deviations
        bound = 5 * (chance * (1 - chance) / self.COUNT) ** 0.5
        assert (share[places] - chance).abs().max() < bound

    @pytest.mark.parametrize(
        ("env", "name", "count"),
        [
            (KeyToDoorEnv(2, seed=0), "key", 10),
            (KeyToDoorEnv(2, seed=0), "player", 10),
            (VisualMatchEnv(2, seed=0), "target_position", 8),
            (VisualMatchEnv(2, seed=0), "player", 1),
            (VisualMatchEnv(2, seed=0, passive=False), "target_position", 26),
            (VisualMatchEnv(2, seed=0, passive=False), "player", 10),
        ],
    )
    def test_cells_are_uniform(self, env: GridEnv, name: str, count: int) -> None:
        drawn = env._draw(self.COUNT)[name]
        cells, counts = drawn.unique(dim=0, return_counts=True)
        assert len(cells) == count
        chance = 1 / count
        bound = 5 * (chance * (1 - chance) / self.COUNT) ** 0.5
        assert (counts / self.COUNT - chance).abs().max() <= bound

    def test_targets_and_colors(self) -> None:
        env = VisualMatchEnv(2, colors=(2, 0, 1), seed=0)
        layout = env._draw(self.COUNT)
        assert (layout["target"].bincount() / self.COUNT - 1 / 3).abs().max() < 0.027
        assert torch.equal(layout["colors"].unique(dim=0), torch.tensor([[2, 0, 1]]))


def test_render() -> None:
    env, _, _ = start("key_to_door_shm")
    picture = env.render(1, scale=2)
    assert picture.shape == (14, 22, 3)
    assert picture.dtype == torch.uint8
    row, column = env.player[1].tolist()
    assert picture[2 * row, 2 * column].tolist() == [228, 148, 109]
    # beyond two cells the board is darker
    wall = picture[0, 4 * 2] if row >= 3 else picture[12, 8]
    assert wall.tolist() == [12, 12, 12]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"frames": (10, 0, 3)}, r"frames .* at least 1, got \(10, 0, 3\)"),
            ({"frames": (10, 3)}, r"frames must be 3 numbers"),
            ({"num_apples": 23}, "num_apples must be 0 to 22, .* got 23"),
            ({"final_reward": 0.0}, r"final_reward must be finite and positive, got 0\.0"),
            ({"apple_reward": -1.0}, "apple_reward must be finite and not negative"),
            ({"respawn_every": -1}, "respawn_every .* got -1"),
            ({"dtype": "int8"}, "dtype must be one of .*'uint8'.* got 'int8'"),
            ({"colors": (0, 0, 1)}, r"colors must be 0, 1 and 2 .* got \(0, 0, 1\)"),
        ],
    )
    def test_impossible_constants(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VisualMatchEnv(2, **options)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("key", [0, 0], r'"key" of environment 0 is \(0, 0\); it must be one of \(1, 3\)'),
            ("player", [1, 3], r'"player" of environment 0 is \(1, 3\)'),
        ],
    )
    def test_impossible_layouts(self, name: str, value: list[int], message: str) -> None:
        env = KeyToDoorEnv(1)
        layout = env._draw(1)
        layout[name] = torch.tensor([value])
        with pytest.raises(ValueError, match=message):
            inject(env, **layout)

    def test_apples_in_walls(self) -> None:
        env = KeyToDoorEnv(1)
        layout = env._draw(1)
        layout["apples"][0, 0, 4] = True
        with pytest.raises(ValueError, match=r'"apples" of environment 0 has one at \(0, 4\)'):
            inject(env, **layout)

    def test_layout_of_another_shape(self) -> None:
        env = KeyToDoorEnv(1)
        layout = {**env._draw(1), "apples": torch.zeros(1, 22)}
        with pytest.raises(ValueError, match=r'"apples" of shape \(1, 7, 11\), got \(1, 22\)'):
            inject(env, **layout)

    def test_action_that_does_not_exist(self) -> None:
        env = KeyToDoorEnv(2)
        env.reset()
        with pytest.raises(ValueError, match="actions of KeyToDoorEnv are 0 to 3, got 0 to 4"):
            env.step(TensorDict({"action": torch.tensor([0, 4])}, [2]))


def test_all_situations_are_few() -> None:
    """The tables stay small; the episodes that they cover are counted by hand elsewhere."""
    env = KeyToDoorEnv(1)
    assert env._tables.view.shape[1:] == (3, _grid._VIEW**2)
    assert len(env._tables.follows) < 3_000
