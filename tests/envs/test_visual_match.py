"""Visual Match: the original's bytes and rewards, and its rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.envs._grid_contract import GridContract
from tests.envs._grid_helpers import LEFT, RIGHT, UP, check_replay, play, recorded
from tests.envs._helpers import inject, step
from torchrl_shm.envs.visual_match import VisualMatchEnv

ACTIVE_60: dict[str, Any] = {"passive": False, "frames": (15, 60, 10)}
# columns of the left, middle and right field
FIELDS = (2, 5, 8)


def start(count: int, target: int = 0) -> dict[str, Tensor]:
    """No apples, and the sign above the player."""
    return {
        "player": torch.tensor([[2, 5]] * count),
        "target": torch.full((count,), target),
        "target_position": torch.tensor([[1, 5]] * count),
        "colors": torch.tensor([[0, 1, 2]] * count),
        "apples": torch.zeros(count, 7, 11, dtype=torch.bool),
    }


def walk_to(field: int) -> list[int]:
    """From (5, 5) to a field, without a detour over another one."""
    side = RIGHT if field == 2 else LEFT
    return [UP, UP, UP, *[side] * abs(FIELDS[field] - 5), UP]


class TestContract(GridContract):
    make = staticmethod(VisualMatchEnv)
    layout = staticmethod(start)


class TestOriginal:
    @pytest.mark.parametrize(
        ("name", "passive"), [("visual_match_passive_shm", True), ("visual_match_active_60", False)]
    )
    def test_steps_are_exact(self, name: str, passive: bool) -> None:
        data = recorded(name)
        frames = tuple(data["frames"].tolist())
        env = VisualMatchEnv(len(data["action"]), frames=frames, passive=passive)
        layout = {
            "player": data["player0"],
            "target": data["target"],
            "target_position": data["tpos"],
            "colors": data["perm"],
            "apples": data["apples"],
        }
        check_replay(env, layout, data)

    def test_defaults(self) -> None:
        env = VisualMatchEnv()
        assert env.max_steps == 125
        assert (env.final_reward, env.num_apples, env.apple_reward) == (10, 10, 1)


class TestRules:
    @pytest.mark.parametrize(("target", "choice"), [(0, 0), (1, 1), (2, 2), (0, 2), (2, 1)])
    def test_the_first_field_counts_and_all_vanish(self, target: int, choice: int) -> None:
        env = VisualMatchEnv(1, frames=(1, 1, 20), final_reward=7.0)
        inject(env, **start(1, target))
        for _ in range(2):
            step(env, UP)
        path = walk_to(choice)
        back = [RIGHT] * 6 + [LEFT] * 6
        data = [step(env, action) for action in path + back]
        right = target == choice
        assert env.player[0, 0].item() == 1
        rewards = [x["reward"].item() for x in data]
        assert rewards[len(path) - 1] == 7 * right
        assert sum(rewards) == 7 * right
        assert [x["success"].item() for x in data[len(path) - 2 : len(path)]] == [False, right]
        assert data[-1]["success"].item() == right
        board = env.render(scale=1).reshape(-1, 3).tolist()
        assert not any(max(color) >= 127 and min(color) == 0 for color in board)

    def test_player_is_boxed_in(self) -> None:
        env = VisualMatchEnv(4, frames=(15, 1, 1), seed=0)
        env.reset()
        for action in range(4):
            for _ in range(3):
                step(env, action)
            assert env.player.tolist() == [[2, 5]] * 4

    def test_sign_has_the_color_of_the_right_field(self) -> None:
        env = VisualMatchEnv(4, frames=(1, 1, 10), colors=(2, 0, 1), image=True, seed=0)
        assert (env._draw(4)["colors"] == torch.tensor([2, 0, 1])).all()
        layout = start(3)
        layout["target"] = torch.arange(3)
        layout["colors"][:] = torch.tensor([2, 0, 1])
        env = VisualMatchEnv(3, frames=(1, 1, 10), image=True)
        seen = inject(env, **layout)["observation"][:, :, 1, 2]
        red, green, blue = torch.eye(3, dtype=torch.uint8) * 255
        assert torch.equal(seen, torch.stack([blue, red, green]))
        for _ in range(5):
            seen = step(env, UP)["observation"]
        # two cells below the fields: the middle one is in sight, and red for all
        assert env.player.tolist() == [[2, 5]] * 3
        assert torch.equal(seen[:, :, 1, 2], red.expand(3, 3))


class TestLayouts:
    @pytest.mark.parametrize(("passive", "signs"), [(True, 8), (False, 26)])
    def test_draws_are_uniform(self, passive: bool, signs: int) -> None:
        drawn = VisualMatchEnv(seed=0, passive=passive)._draw(4000)
        cells, counts = drawn["target_position"].unique(dim=0, return_counts=True)
        assert len(cells) == signs
        mean = 4000 / signs
        assert (counts - mean).abs().max() < 5 * mean**0.5
        # 1333 are expected of each, with a standard deviation of 30
        assert (drawn["target"].bincount(minlength=3) - 1333).abs().max() < 150
        players = drawn["player"].unique(dim=0).tolist()
        active = [[row, column] for row in (4, 5) for column in range(3, 8)]
        assert players == ([[2, 5]] if passive else active)
        assert (drawn["colors"] == torch.tensor([0, 1, 2])).all()

    @pytest.mark.parametrize(
        ("name", "value", "found"),
        [
            ("player", (2, 4), r"\(2, 4\); it must be one of \(2, 5\)"),
            ("target_position", (2, 5), r"\(2, 5\); it must be one of \(1, 4\)"),
            ("colors", (0, 0, 1), r"\(0, 0, 1\); it must be one of \(0, 1, 2\), \(0, 2, 1\)"),
        ],
    )
    def test_wrong_values_are_named(self, name: str, value: Any, found: str) -> None:
        layout = start(3)
        layout[name][1] = torch.tensor(value)
        with pytest.raises(ValueError, match=f'"{name}" of environment 1 is {found}'):
            inject(VisualMatchEnv(3), **layout)

    @pytest.mark.parametrize("target", [-1, 3])
    def test_wrong_targets(self, target: int) -> None:
        with pytest.raises(ValueError, match=f'"target" must be between 0 and 2, got {target}'):
            inject(VisualMatchEnv(3), **start(3, target))

    def test_active_room_has_cells_of_its_own(self) -> None:
        with pytest.raises(ValueError, match=r'"player" of environment 0 is \(2, 5\)'):
            inject(VisualMatchEnv(3, passive=False), **start(3))

    @pytest.mark.parametrize("colors", [(0, 1), (0, 1, 1), (1, 2, 3)])
    def test_impossible_colors(self, colors: Any) -> None:
        with pytest.raises(ValueError, match="colors must be 0, 1 and 2"):
            VisualMatchEnv(3, colors=colors)


class TestScores:
    @pytest.mark.parametrize(
        ("kwargs", "random", "greedy"), [({}, 9.2, 47.1), (ACTIVE_60, 5.7, 32.5)]
    )
    def test_bounds(self, kwargs: dict[str, Any], random: float, greedy: float) -> None:
        returns, won = play(VisualMatchEnv(1000, seed=0, **kwargs), greedy=False)
        assert returns.mean().item() == pytest.approx(random, abs=0.5)
        assert won.mean().item() == pytest.approx(0.024, abs=0.02)
        returns, won = play(VisualMatchEnv(1000, seed=0, **kwargs), greedy=True)
        assert returns.mean().item() == pytest.approx(greedy, abs=0.5)
        assert won.all()
