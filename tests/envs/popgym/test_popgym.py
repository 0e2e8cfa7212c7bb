"""POPGym's families: samplers, options, mistakes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.data import Categorical, MultiCategorical

from tests.envs._helpers import POPGYM, inject, step
from tests.envs.popgym._originals import LEVELS
from torchrl_shm.envs import BatchedEnv
from torchrl_shm.envs.popgym import (
    AutoencodeEnv,
    BattleshipEnv,
    CountRecallEnv,
    MineSweeperEnv,
    MultiarmedBanditEnv,
    PositionOnlyCartPoleEnv,
    RepeatPreviousEnv,
)


class TestSamplers:
    @pytest.mark.parametrize("level", LEVELS)
    def test_decks_are_permutations(self, level: Any) -> None:
        env = CountRecallEnv(200, level=level, seed=0)
        env.reset()
        expected = env._values.sort().values.expand(200, -1)
        for name in ("values", "queries"):
            deck = env._running()[name]
            assert torch.equal(deck.sort(-1).values, expected)
            assert len(deck.unique(dim=0)) == 200
        assert not torch.equal(env._running()["values"], env._running()["queries"])

    def test_every_card_may_come_anywhere(self) -> None:
        env = RepeatPreviousEnv(4_000, seed=0)
        env.reset()
        share = torch.nn.functional.one_hot(env._running()["deck"]).double().mean(0)
        # five standard deviations
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4_000) ** 0.5

    @pytest.mark.parametrize("level", LEVELS)
    def test_ships(self, level: Any) -> None:
        """Ships of the sizes asked for, where popgym's rejection would put them."""
        popgym = pytest.importorskip("popgym.envs")
        count = 4_000
        env = BattleshipEnv(count, level=level, seed=0)
        env.reset()
        board = env._running()["board"].double()
        assert (board.sum((1, 2)) == 12).all()
        original = getattr(popgym, f"Battleship{level.capitalize()}")()
        theirs = torch.zeros_like(board[0])
        for seed in range(count // 4):
            original.reset(seed=seed)
            theirs += torch.from_numpy(original.board).double()
        # turned and mirrored boards are as likely: eight times the numbers for the same noise
        ours, theirs = _symmetric(board.mean(0)), _symmetric(theirs / (count // 4))
        noise = (0.25 * (1 / (8 * count) + 1 / (2 * count))) ** 0.5
        assert (ours - theirs).abs().max() < 8 * noise

    @pytest.mark.parametrize("level", LEVELS)
    def test_fleets_can_be_given_again(self, level: Any) -> None:
        """Ships that touch can be told apart in several ways, of which one is enough."""
        env = BattleshipEnv(200, level=level, seed=0)
        inject(env, **env._draw(200))
        if level == "easy":
            inject(BattleshipEnv(2), board=_scattered()[:1].expand(2, -1, -1))

    def test_mines(self) -> None:
        env = MineSweeperEnv(4_000, level="medium", seed=0)
        env.reset()
        mines = env._running()["mines"].double()
        assert (mines.sum((1, 2)) == 6).all()
        share = 6 / 36
        assert (mines.mean(0) - share).abs().max() < 5 * (share * (1 - share) / 4_000) ** 0.5

    def test_payouts(self) -> None:
        env = MultiarmedBanditEnv(10_000, seed=0)
        arms = torch.linspace(0, 1, 10).expand(10_000, 10)
        inject(env, arms=arms)
        for arm in (0, 4, 9):
            paid = step(env, torch.full((10_000,), arm))["reward"] > 0
            assert paid.double().mean().item() == pytest.approx(arm / 9, abs=0.025)


def _symmetric(board: Tensor) -> Tensor:
    """Mean over the eight symmetries of the square."""
    turned = [board.rot90(k) for k in range(4)]
    return torch.stack([*turned, *(x.T for x in turned)]).mean(0)


class TestOptions:
    @pytest.mark.parametrize("name", POPGYM)
    def test_wrappers(self, name: str) -> None:
        full = POPGYM[name](3, seed=0)
        whole = full.reset()["observation"]
        width = whole.shape[1] - 2
        own = width - (sum(full._sizes) or 1)
        for previous_action, antialias in product((True, False), repeat=2):
            options = {"previous_action": previous_action, "antialias": antialias}
            env = POPGYM[name](3, seed=0, **options)
            data, kept = env.reset()["observation"], [whole[:, :own]]
            if previous_action:
                kept.append(whole[:, own:width])
            if antialias:
                kept.append(whole[:, width:])
                assert (data[:, -2:] == torch.tensor([0.0, 1.0])).all()
            assert torch.equal(data, torch.cat(kept, -1))
            assert env.policy_keys == ("observation",)

    def test_actions_of_boards(self) -> None:
        board = torch.zeros(2, 8, 8, dtype=torch.bool)
        board[:, 1, 2:6] = board[:, 3, 2:5] = board[:, 5, 2:5] = board[:, 7, 2:4] = True
        joint, apart = BattleshipEnv(2), BattleshipEnv(2, joint_action=False)
        assert isinstance(joint.action_spec, Categorical)
        assert isinstance(apart.action_spec, MultiCategorical)
        inject(joint, board=board)
        inject(apart, board=board)
        cells = torch.tensor([[1, 3], [0, 3]])
        ours = step(joint, cells[:, 0] * 8 + cells[:, 1])
        theirs = step(apart, cells)
        assert (ours == theirs).all()
        assert ours["reward"].squeeze(-1).tolist() == pytest.approx([1 / 12, -1 / 52])

    def test_own_constants(self) -> None:
        assert AutoencodeEnv(2, num_decks=2).max_steps == 207
        assert RepeatPreviousEnv(2, level="hard", k=5).k == 5
        assert MineSweeperEnv(2, num_mines=3).max_steps == 13
        assert MultiarmedBanditEnv(2, num_arms=4, max_steps=7).max_steps == 7
        assert PositionOnlyCartPoleEnv(2, max_steps=5, noise=0.1).noise == 0.1


def _scattered() -> Tensor:
    """A fleet whose ships touch, and a board of twelve cells that is none."""
    board = torch.zeros(2, 8, 8, dtype=torch.bool)
    board[0, 0, :4] = board[0, 1, :3] = board[0, 1:4, 3] = board[0, 2, 1:3] = True
    board[1, ::2, ::2][:3] = True
    return board


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("Autoencode", {"level": "brutal"}, "level='brutal' is unknown.*'easy', 'medium'"),
            ("Autoencode", {"num_decks": 0}, "num_decks must be at least 1, got 0"),
            ("RepeatPrevious", {"k": 52}, "k must be below 52, the number of cards, got 52"),
            ("Battleship", {"ship_sizes": (9,)}, "not be longer than board_size=8"),
            ("Battleship", {"ship_sizes": ()}, r"ship_sizes must name a ship at least, got \(\)"),
            ("Battleship", {"ship_sizes": (0,)}, "ship_sizes must be at least 1, got 0"),
            ("Battleship", {"board_size": 4}, "may not fit on 4x4"),
            ("Battleship", {"ship_sizes": (1,) * 64}, "no water"),
            ("MineSweeper", {"num_mines": 14}, "14 mines on 4x4 cells"),
            ("MineSweeper", {"num_mines": 0}, "num_mines must be at least 1, got 0"),
            ("CountRecall", {"field": "foo"}, "field='foo' is unknown.*'suits'"),
            ("MultiarmedBandit", {"num_arms": 0}, "num_arms must be at least 1"),
            ("PositionOnlyPendulum", {"max_steps": 0}, "max_steps must be at least 1"),
            ("PositionOnlyCartPole", {"noise": -1.0}, "noise must be finite and not negative"),
        ],
    )
    def test_impossible_constants(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            POPGYM[name](2, **options)

    @pytest.mark.parametrize(
        ("env", "entry", "message"),
        [
            (AutoencodeEnv(2), {"deck": torch.zeros(2, 52, dtype=torch.int64)}, "13 cards of each"),
            (AutoencodeEnv(2), {"deck": torch.zeros(2, 9, dtype=torch.int64)}, r"shape \(2, 52\)"),
            (BattleshipEnv(2), {"board": torch.ones(2, 8, 8)}, r"12 cells with ships, got \[64\]"),
            (
                BattleshipEnv(2),
                {"board": _scattered()},
                "environment 1 is not made of ships of \\(2, ",
            ),
            (MineSweeperEnv(2), {"mines": torch.zeros(2, 4, 4)}, r"2 cells, got \[0\]"),
            (
                MultiarmedBanditEnv(2),
                {"arms": torch.full((2, 10), 1.5)},
                "between 0 and 1, got 1.5",
            ),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BatchedEnv) else "",
    )
    def test_impossible_layouts(self, env: Any, entry: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            inject(env, **entry)
