"""Repeat Previous: name the card of some steps ago."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_count, level_value
from torchrl_shm.envs.popgym._cards import CardEnv


class RepeatPreviousEnv(CardEnv):
    """Name the suit of the card that was shown k - 1 steps ago.

    ## Description

    A card is shown at every step; the agent answers with the suit of the card from k - 1 steps
    before the one that it sees. It has to keep the last k cards in order. POPGym's
    `RepeatPrevious` (`popgym/envs/repeat_previous.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`, a suit, 0 to 3.

    ## Observation Space

    `observation`: float32 of shape `[B, 10]`: suit (4), previous action (4), time flags (2).

    ## Rewards

    From step k - 1 on (the first is step 0) 1/(n - k) for a right suit and -1/(n - k) for a wrong
    one, n cards; 0 before. The best return is 1.

    ## Starting State

    A shuffled deck. `reset(TensorDict({"deck": deck}), set_state=True)` takes suits in the order
    of dealing, int64 of shape `[B, n]`.

    ## Episode End

    Terminated after n - 1 steps: 51, 103, 155.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2, 3 decks and k = 4, 32, 64.
        num_decks: decks of 52 cards; `None` is the level's.
        k: how many cards to keep; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `num_decks` not positive, or `k` not in [1, n).

    Examples:
        >>> from torchrl_shm.envs.popgym import RepeatPreviousEnv
        >>> RepeatPreviousEnv(num_envs=3, level="hard").k
        64

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        num_decks: int | None = None,
        k: int | None = None,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        self._shuffle(level_value(num_decks, {"easy": 1, "medium": 2, "hard": 3}, level), "suits")
        self.k = level_count("k", k, {"easy": 4, "medium": 32, "hard": 64}, level)
        n = self.num_cards
        if self.k >= n:
            raise ValueError(f"k must be below {n}, the number of cards, got {self.k}")
        self.max_steps = n - 1
        self._scale = 1 / (n - self.k)
        self._specify(blocks=[4], actions=[4], rewards=(-self._scale, self._scale), seed=seed)

    def _begin(self, layout: State) -> State:
        return {"deck": layout["deck"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        asked = state["step"] - (self.k - 1)
        answer = self._card(state["deck"], asked.clamp(min=0))
        reward = self._judge(action == answer, self._scale) * (asked >= 0)
        return Transition(dict(state), reward, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])
