"""Autoencode: watch a sequence of cards and name it backwards."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_value
from torchrl_shm.envs.popgym._cards import CardEnv


class AutoencodeEnv(CardEnv):
    """Watch a sequence of cards, then repeat their suits in reverse order.

    ## Description

    The cards of shuffled decks are shown one after the other; when all have been seen, the agent
    names their suits from the last to the first, and sees nothing meanwhile. It has to remember
    the whole sequence. POPGym's `Autoencode` (`popgym/envs/autoencode.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`, a suit, 0 to 3. It counts only in the second half.

    ## Observation Space

    `observation`: float32 of shape `[B, 12]`: mode (2: play, watch), suit (4; that of the first
    card of a fresh deck, 0, while playing), previous action (4), time flags (2). See `POPGymEnv`.

    ## Rewards

    0 while watching, then 1/n for a right suit and -1/n for a wrong one, n cards: in [-1, 1].

    ## Starting State

    A shuffled deck. `reset(TensorDict({"deck": deck}), set_state=True)` takes suits in the order
    of dealing, int64 of shape `[B, n]`.

    ## Episode End

    Terminated after 2n - 1 steps: 103, 207, 311.

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
        >>> from torchrl_shm.envs.popgym import AutoencodeEnv
        >>> env = AutoencodeEnv(num_envs=3, seed=0)
        >>> env.rollout(200)["next", "terminated"][:, -1].squeeze(-1)
        tensor([True, True, True])

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
        self._shuffle(level_value(num_decks, {"easy": 1, "medium": 2, "hard": 3}, level), "suits")
        n = self.num_cards
        self.max_steps = 2 * n - 1
        self._specify(blocks=[2, 4], actions=[4], rewards=(-1 / n, 1 / n), seed=seed)

    def _begin(self, layout: State) -> State:
        return {"deck": layout["deck"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        step, n = state["step"], self.num_cards
        answer = self._card(state["deck"], (2 * n - 2 - step).clamp(max=n - 1))
        reward = self._judge(action == answer, 1 / n) * (step >= n - 1)
        return Transition(dict(state), reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        step, n = state["step"], self.num_cards
        card = state["deck"].gather(1, step.clamp(max=n - 1)) * (step < n)
        # watching until the last card is shown
        return torch.cat([(step < n - 1).long(), card], -1)
