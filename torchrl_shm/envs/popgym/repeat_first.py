"""Repeat First: name the very first card."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_value
from torchrl_shm.envs.popgym._cards import CardEnv


class RepeatFirstEnv(CardEnv):
    """Name the suit of the first card, at every step.

    ## Description

    A card is shown at every step, and the answer is always the suit of the very first one. POPGym's
    `RepeatFirst` (`popgym/envs/repeat_first.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`, a suit, 0 to 3.

    ## Observation Space

    `observation`: float32 of shape `[B, 10]`: suit (4), previous action (4), time flags (2).

    ## Rewards

    1/(n - 1) for a right suit, -1/(n - 1) for a wrong one, n cards: in [-1, 1].

    ## Starting State

    A shuffled deck. `reset(TensorDict({"deck": deck}), set_state=True)` takes suits in the order
    of dealing, int64 of shape `[B, n]`.

    ## Episode End

    Terminated after n - 1 steps: 51, 415, 831.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 1, 8 or 16 decks.
        num_decks: decks of 52 cards; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown or `num_decks` not positive.

    Examples:
        >>> from torchrl_shm.envs.popgym import RepeatFirstEnv
        >>> RepeatFirstEnv(num_envs=3, level="medium").max_steps
        415

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
        self._shuffle(level_value(num_decks, {"easy": 1, "medium": 8, "hard": 16}, level), "suits")
        self.max_steps = self.num_cards - 1
        self._scale = 1 / self.max_steps
        self._specify(blocks=[4], actions=[4], rewards=(-self._scale, self._scale), seed=seed)

    def _begin(self, layout: State) -> State:
        return {"deck": layout["deck"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        reward = self._judge(action == state["deck"][:, 0], self._scale)
        return Transition(dict(state), reward, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])
