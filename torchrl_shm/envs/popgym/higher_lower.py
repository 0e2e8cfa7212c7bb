"""Higher Lower: guess the next card from what is left."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_value
from torchrl_shm.envs.popgym._cards import CardEnv


class HigherLowerEnv(CardEnv):
    """Guess whether the next card is higher or lower; count cards to guess better.

    ## Description

    A card is shown, and the agent guesses whether the rank of the next one is higher or lower.
    An agent that remembers the cards that were dealt knows what is left. POPGym's `HigherLower`
    (`popgym/envs/higher_lower.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 for higher, 1 for lower.

    ## Observation Space

    `observation`: float32 of shape `[B, 17]`: rank (13), previous action (2), time flags (2).

    ## Rewards

    1/n for a right guess, -1/n for a wrong one, 0 where the ranks are equal, n cards.

    ## Starting State

    A shuffled deck. `reset(TensorDict({"deck": deck}), set_state=True)` takes ranks in the order
    of dealing, int64 of shape `[B, n]`, 0 to 12.

    ## Episode End

    Terminated after n - 1 steps: 51, 103, 155.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2 or 3 decks.
        num_decks: decks of 52 cards; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown or `num_decks` not positive.

    Examples:
        >>> from torchrl_shm.envs.popgym import HigherLowerEnv
        >>> HigherLowerEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 17])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        num_decks: int | None = None,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        self._shuffle(level_value(num_decks, {"easy": 1, "medium": 2, "hard": 3}, level), "ranks")
        self.max_steps = self.num_cards - 1
        scale = 1 / self.num_cards
        self._specify(blocks=[13], actions=[2], rewards=(-scale, scale), seed=seed)

    def _begin(self, layout: State) -> State:
        return {"deck": layout["deck"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        deck, step = state["deck"], state["step"]
        shown, following = self._card(deck, step), self._card(deck, step + 1)
        right = (following > shown) == (action == 0)
        counts = (following != shown).unsqueeze(-1)
        reward = self._judge(right, 1 / self.num_cards) * counts
        return Transition(dict(state), reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])
