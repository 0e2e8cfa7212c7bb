"""Concentration: find pairs of cards that lie face down."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_value
from torchrl_shm.envs.popgym._cards import CardEnv, Field


class ConcentrationEnv(CardEnv):
    """Turn over two cards at a time and find the pairs.

    ## Description

    All cards lie face down. The agent turns over one card per step; two cards of equal value stay
    up, others are turned back. An agent that remembers all positions finds pairs at once. POPGym's
    `Concentration` (`popgym/envs/concentration.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`, a position on the table, 0 to n - 1.

    ## Observation Space

    `observation`: float32: for each of n positions its value or "face down" (3, 3 or 14 numbers),
    previous action (n), time flags (2). Cards are shown before they are turned back.

    ## Rewards

    2/n for a pair. With f = -1/L, L the longest episode: 2f for two cards that do not match (the
    same card twice, too), and f per card in play for a card that is up already; 0 for the first
    card of a pair.

    ## Starting State

    A shuffled deck, face down. `reset(TensorDict({"deck": deck}), set_state=True)` takes the
    values by position on the table, int64 of shape `[B, n]`.

    ## Episode End

    Terminated when all cards are up; truncated after L = ceil(2n - n / (2n - 1)) steps: 104, 208,
    104.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2, 1 decks; colors, colors, ranks.
        num_decks: decks of 52 cards; `None` is the level's.
        field: what of a card counts: `"colors"` or `"ranks"`; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` or `field` is unknown or `num_decks` not positive.

    Examples:
        >>> from torchrl_shm.envs.popgym import ConcentrationEnv
        >>> ConcentrationEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 210])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _tensors = (*CardEnv._tensors, "_face_up")

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        num_decks: int | None = None,
        field: Field | None = None,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        fields: dict[str, Field] = {"easy": "colors", "medium": "colors", "hard": "ranks"}
        self._shuffle(
            level_value(num_decks, {"easy": 1, "medium": 2, "hard": 1}, level),
            level_value(field, fields, level),
        )
        n = self.num_cards
        self.max_steps = -(-(2 * n * (2 * n - 1) - n) // (2 * n - 1))
        # two cards have their value, and are not face down
        self._face_up = torch.tensor([[True, True, False, False]], device=self.device)
        rewards = (-2 / self.max_steps, 2 / n)
        # one more category, for a card that is face down
        blocks = [self.num_values + 1] * n
        self._specify(blocks=blocks, actions=[n], rewards=rewards, seed=seed, expanded=True)

    def _begin(self, layout: State) -> State:
        deck = layout["deck"]
        down = torch.zeros_like(deck, dtype=torch.bool)
        nothing = torch.zeros_like(deck[:, :2])
        cards = torch.zeros(len(deck), self.num_cards, self.num_values + 1, device=self.device)
        cards[..., -1] = 1
        return {
            "deck": deck,
            "up": down,
            "left": nothing[:, :1] + self.num_cards,
            # -1: no card is in play
            "first": nothing[:, :1] - 1,
            "table": cards.bool().flatten(1),
            # what was turned over last: without effect at the start, where it is face down
            "turned": nothing,
            "slots": self._slots(nothing, deck[:, :1].expand(-1, 2)),
        }

    def _slots(self, cells: Tensor, values: Tensor) -> Tensor:
        """Where the table says that cards have values, and that they are face down, `[B, 4]`."""
        block = cells * (self.num_values + 1)
        return torch.cat([block + values, block + self.num_values], -1)

    def _play(self, state: State, action: Tensor) -> Transition:
        first, second = state["first"], action.unsqueeze(-1)
        is_pair = first >= 0
        cells = torch.cat([torch.where(is_pair, first, second), second], -1)
        values = state["deck"].gather(1, cells)
        ups = state["up"].gather(1, cells)
        already = ups[:, 1:]
        equal = values[:, :1] == values[:, 1:]
        found = equal & (cells[:, :1] != second) & ~already
        fine = -1 / self.max_steps
        # a first card that is not up yet costs nothing; every other end costs per card in play
        cost = torch.where(is_pair, 2 * fine, torch.where(already, fine, 0.0))
        reward = torch.where(found, 2 / self.num_cards, cost)
        up = state["up"].scatter(1, cells, ups | found)
        left = state["left"] - 2 * found
        # two cards of the last step are turned back unless they stay up, then these are shown
        stay = up.gather(1, state["turned"])
        table = state["table"].scatter(1, state["slots"], torch.cat([stay, ~stay], -1))
        slots = self._slots(cells, values)
        table.scatter_(1, slots, self._face_up.expand(len(slots), 4))
        new = {
            "deck": state["deck"],
            "up": up,
            "left": left,
            "first": torch.where(already | is_pair, -1, second),
            "table": table,
            "turned": cells,
            "slots": slots,
        }
        return Transition(new, reward, left == 0, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        # bytes are copied much faster than truth values
        return state["table"].view(torch.uint8)
