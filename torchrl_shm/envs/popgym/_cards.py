"""Decks of cards, for the card games of POPGym."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.envs.contract import Entry, State
from torchrl_shm.envs.popgym._base import POPGymEnv

Field = Literal["colors", "suits", "ranks"]

_NUM_VALUES: dict[str, int] = {"colors": 2, "suits": 4, "ranks": 13}
_CARDS = 52


class CardEnv(POPGymEnv):
    """A game with shuffled decks in which only one field of each card counts.

    A subclass calls `_shuffle` before `_specify`. A layout has one entry per name in `_DECKS`, the
    values of the cards, `[B, n]` int64.
    """

    _DECKS: tuple[str, ...] = ("deck",)
    _tensors = (*POPGymEnv._tensors, "_values")

    def _shuffle(self, num_decks: int, field: Field) -> None:
        check_count("num_decks", num_decks)
        check_option("field", field, Field)
        self.num_decks = num_decks
        self.num_cards = num_decks * _CARDS
        self.num_values = _NUM_VALUES[field]
        index = torch.arange(self.num_cards, device=self.device)
        # as popgym numbers them: colors and suits alternate, four cards in a row have one rank
        by_field = {"colors": index % 2, "suits": index % 4, "ranks": index % _CARDS // 4}
        self._values = by_field[field]

    def _layout(self) -> dict[str, Entry]:
        return {name: Entry((self.num_cards,), torch.int64) for name in self._DECKS}

    def _draw(self, count: int) -> State:
        shape = (count, self.num_cards)
        return {
            name: self._values[
                torch.rand(shape, generator=self._generator, device=self.device).argsort(-1)
            ]
            for name in self._DECKS
        }

    def _check_layout(self, layout: State) -> None:
        for name, deck in layout.items():
            if not torch.equal(deck.sort(-1).values, self._values.sort().values.expand_as(deck)):
                raise ValueError(
                    f"{name} must hold {self.num_cards // self.num_values} cards of each value "
                    f"from 0 to {self.num_values - 1}, in the order of dealing"
                )

    @staticmethod
    def _card(deck: Tensor, at: Tensor) -> Tensor:
        """The cards at positions `[B, 1]`, of shape `[B]`."""
        return deck.gather(1, at).squeeze(1)

    @staticmethod
    def _judge(right: Tensor, scale: float) -> Tensor:
        """`scale` where right, `-scale` where wrong, `[B, 1]`."""
        return torch.where(right, scale, -scale).unsqueeze(-1)
