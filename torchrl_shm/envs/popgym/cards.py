"""Card games of POPGym: remember suits, ranks, and how often something was seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_shm.envs._base import State
from torchrl_shm.envs.popgym._base import Level, Outcome, level_value
from torchrl_shm.envs.popgym._cards import CardEnv, Field


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

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        step, n = state["step"], self.num_cards
        answer = self._card(state["deck"], (2 * n - 2 - step).clamp(max=n - 1))
        reward = self._judge(action[0] == answer, 1 / n) * (step >= n - 1)
        return Outcome(dict(state), reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        step, n = state["step"], self.num_cards
        card = state["deck"].gather(1, step.clamp(max=n - 1)) * (step < n)
        # watching until the last card is shown
        return torch.cat([(step < n - 1).long(), card], -1)


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
        self.k: int = level_value(k, {"easy": 4, "medium": 32, "hard": 64}, level)
        n = self.num_cards
        if not 1 <= self.k < n:
            raise ValueError(f"k must be at least 1 and below {n} cards, got {self.k}")
        self.max_steps = n - 1
        self._scale = 1 / (n - self.k)
        self._specify(blocks=[4], actions=[4], rewards=(-self._scale, self._scale), seed=seed)

    def _begin(self, layout: State) -> State:
        return {"deck": layout["deck"]}

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        asked = state["step"] - (self.k - 1)
        answer = self._card(state["deck"], asked.clamp(min=0))
        reward = self._judge(action[0] == answer, self._scale) * (asked >= 0)
        return Outcome(dict(state), reward, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])


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

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        reward = self._judge(action[0] == state["deck"][:, 0], self._scale)
        return Outcome(dict(state), reward, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])


class HigherLowerEnv(CardEnv):
    """Guess whether the next card is higher or lower; count cards to guess better.

    ## Description

    A card is shown, and the agent guesses whether the rank of the next one is higher or lower.
    Who remembers the cards that were dealt knows what is left. POPGym's `HigherLower`
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

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        deck, step = state["deck"], state["step"]
        shown, following = self._card(deck, step), self._card(deck, step + 1)
        right = (following > shown) == (action[0] == 0)
        counts = (following != shown).unsqueeze(-1)
        reward = self._judge(right, 1 / self.num_cards) * counts
        return Outcome(dict(state), reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["deck"].gather(1, state["step"])


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
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2, 4 decks; colours, suits, ranks.
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

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        step = state["step"]
        answer = self._card(state["counts"], state["queries"].gather(1, step))
        value = state["values"].gather(1, step + 1)
        counts = state["counts"].scatter_add(1, value, torch.ones_like(value))
        reward = self._judge(action[0] == answer, 1 / self.max_steps)
        return Outcome({**state, "counts": counts}, reward, step >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        step = state["step"]
        return torch.cat([state[name].gather(1, step) for name in self._DECKS], -1)


class ConcentrationEnv(CardEnv):
    """Turn over two cards at a time and find the pairs.

    ## Description

    All cards lie face down. The agent turns over one card per step; two cards of equal value stay
    up, others are turned back. Who remembers what lay where finds pairs at once. POPGym's
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
        level: `"easy"`, `"medium"` or `"hard"`: 1, 2, 1 decks; colours, colours, ranks.
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

    _tensors = (*CardEnv._tensors, "_places")

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
        self._places = torch.arange(n, device=self.device)
        rewards = (-2 / self.max_steps, 2 / n)
        # one more category, for a card that is face down
        blocks = [self.num_values + 1] * n
        self._specify(blocks=blocks, actions=[n], rewards=rewards, seed=seed)

    def _begin(self, layout: State) -> State:
        deck = layout["deck"]
        down = torch.zeros_like(deck, dtype=torch.bool)
        return {
            "deck": deck,
            "up": down,
            "shown": down,
            # -1: no card is in play
            "first": torch.full_like(deck[:, :1], -1),
        }

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        deck, up, first = state["deck"], state["up"], state["first"]
        second = action[0].unsqueeze(-1)
        played = self._places == second
        in_play = played | (self._places == first)
        already = (up & played).any(-1, keepdim=True)
        is_pair = first >= 0
        equal = deck.gather(1, second) == deck.gather(1, first.clamp(min=0))
        found = is_pair & equal & (first != second) & ~already
        fine = -1 / self.max_steps
        count = is_pair.double() + 1
        # a first card that is not up yet costs nothing; every other end costs per card in play
        ends = already | is_pair
        cost = torch.where(ends, fine * count, torch.zeros_like(count))
        reward = torch.where(found, 2 / self.num_cards, cost)
        new = {
            "deck": deck,
            "up": up | (in_play & found),
            "shown": up | in_play,
            "first": torch.where(ends, -1, second),
            "step": state["step"],
        }
        truncated = state["step"] >= self.max_steps - 1
        return Outcome(new, reward, new["up"].all(-1, keepdim=True), truncated)

    def _features(self, state: State) -> Tensor:
        return torch.where(state["shown"], state["deck"], self.num_values)
