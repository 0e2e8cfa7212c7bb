"""Count Recall: say how often a value was dealt."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level, level_value
from torchrl_shm.envs.popgym._cards import CardEnv, Field


class CountRecallEnv(CardEnv):
    """Say how often a value has been seen so far.

    ## Description

    At every step a card is dealt and a value is asked for; the answer is how many cards of that
    value were dealt so far, the one in view included. POPGym's `CountRecall`
    (`popgym/envs/count_recall.py`), step by step. (The copy in the SHM repository has one action
    fewer.)

    ## Action Space

    `action`: int64 of shape `[B]`, a count, 0 to the number of cards of a value.

    ## Observation Space

    `observation`: float32: value (2, 4 or 13), query (as many), previous action (27, 27 or 17),
    time flags (2).

    ## Rewards

    1/(n - 1) for a right count, -1/(n - 1) for a wrong one, n cards: in [-1, 1].

    ## Starting State

    Two shuffled decks. `reset(TensorDict({"values": values, "queries": queries}),
    set_state=True)` takes both in the order of dealing, int64 of shape `[B, n]`.

    ## Episode End

    Terminated after n - 1 steps: 51, 103, 207.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2, 4 decks; colors, suits, ranks.
        num_decks: decks of 52 cards; `None` is the level's.
        field: what of a card counts: `"colors"`, `"suits"` or `"ranks"`; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` or `field` is unknown or `num_decks` not positive.

    Examples:
        >>> from torchrl_shm.envs.popgym import CountRecallEnv
        >>> CountRecallEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 33])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _DECKS = ("values", "queries")

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
        fields: dict[str, Field] = {"easy": "colors", "medium": "suits", "hard": "ranks"}
        self._shuffle(
            level_value(num_decks, {"easy": 1, "medium": 2, "hard": 4}, level),
            level_value(field, fields, level),
        )
        self.max_steps = self.num_cards - 1
        scale = 1 / self.max_steps
        counts = self.num_cards // self.num_values + 1
        blocks = [self.num_values] * 2
        self._specify(blocks=blocks, actions=[counts], rewards=(-scale, scale), seed=seed)

    def _begin(self, layout: State) -> State:
        first = layout["values"][:, :1]
        none = first.new_zeros(len(first), self.num_values)
        return {**layout, "counts": none.scatter(1, first, 1)}

    def _play(self, state: State, action: Tensor) -> Transition:
        step = state["step"]
        answer = self._card(state["counts"], state["queries"].gather(1, step))
        value = state["values"].gather(1, step + 1)
        counts = state["counts"].scatter_add(1, value, torch.ones_like(value))
        reward = self._judge(action == answer, 1 / self.max_steps)
        return Transition({**state, "counts": counts}, reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        step = state["step"]
        return torch.cat([state[name].gather(1, step) for name in self._DECKS], -1)
