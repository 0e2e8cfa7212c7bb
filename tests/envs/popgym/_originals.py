"""The original tasks of the `popgym` package beside ours: layouts, players, and a match of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

import torchrl_shm.envs.popgym as ours
from torchrl_shm.envs.popgym import POPGymEnv

FAMILIES = tuple(name.removesuffix("Env") for name in ours.__all__ if name.endswith("Env"))
FAMILIES = tuple(name for name in FAMILIES if name != "POPGym")
LEVELS = ("easy", "medium", "hard")


class Stream:
    """Stands in for an original's generator and keeps what only a step draws."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.drawn: list[Any] = []

    def random(self, *args: Any, **kwargs: Any) -> Any:
        number = self.generator.random(*args, **kwargs)
        if not args:
            self.drawn.append(number)
        return number

    def normal(self, mean: float, scale: np.ndarray) -> np.ndarray:
        number = self.generator.normal(size=scale.shape)
        self.drawn.append(number)
        return mean + scale * number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)


def originals(name: str, level: str, count: int) -> list[Any]:
    """Wrapped tasks of the package, reset, each with its own stream."""
    from popgym import envs
    from popgym.wrappers import Antialias, Flatten, PreviousAction

    made: list[Any] = []
    for seed in range(count):
        task = getattr(envs, name + level.capitalize())()
        task._np_random = Stream(seed)
        made.append(Flatten(Antialias(PreviousAction(task))))
    return made


def layout(name: str, task: Any) -> dict[str, Any]:
    """What was drawn at the reset, as ours is given it."""
    if name == "CountRecall":
        types = task.deck_idx_type
        values, queries = task.value_deck, task.query_deck
        return {"values": types[values.idx[::-1]], "queries": types[queries.idx[::-1]]}
    if name == "Concentration":
        return {"deck": task.deck_idx_type[task.deck.idx]}
    if name == "HigherLower":
        return {"deck": task.deck.ranks_idx[task.deck.idx[::-1]]}
    if hasattr(task, "deck"):
        return {"deck": task.deck.suits_idx[task.deck.idx[::-1]]}
    if name == "Battleship":
        return {"board": task.board.astype(bool)}
    if name == "MineSweeper":
        return {"mines": task.hidden_grid == 1}
    if name == "MultiarmedBandit":
        return {"arms": task.bandits}
    return {"state": np.asarray(task.state)}


def expert(name: str, env: POPGymEnv) -> Tensor:
    """What a player would do who remembers everything, or even knows what is hidden."""
    state: dict[str, Tensor] = env._state  # pyright: ignore[reportAssignmentType]
    step = state["step"]
    if name in ("Autoencode", "RepeatPrevious", "RepeatFirst", "HigherLower"):
        deck, n = state["deck"], state["deck"].shape[1]
        if name == "HigherLower":
            at = step.clamp(max=n - 2)
            return (deck.gather(1, at + 1) < deck.gather(1, at)).long().squeeze(1)
        k = getattr(env, "k", 0)
        at = {"Autoencode": 2 * n - 2 - step, "RepeatPrevious": step - k + 1}.get(name, step * 0)
        return deck.gather(1, at.clamp(0, n - 1)).squeeze(1)
    if name == "CountRecall":
        query = state["queries"].gather(1, step.clamp(max=state["queries"].shape[1] - 1))
        return state["counts"].gather(1, query).squeeze(1)
    if name == "Concentration":
        # the first card that is down, then its partner
        deck, up, first = state["deck"], state["up"], state["first"]
        partner = (deck == deck.gather(1, first.clamp(min=0))) & ~up
        partner = partner & (torch.arange(deck.shape[1]) != first)
        return torch.where(first >= 0, partner, ~up).float().argmax(1)
    if name == "Battleship":
        return (state["board"].flatten(1) & ~state["guessed"]).float().argmax(1)
    if name == "MineSweeper":
        return (~state["mines"].flatten(1) & ~state["viewed"]).float().argmax(1)
    if name == "MultiarmedBandit":
        return state["arms"].argmax(1)
    if "CartPole" in name:
        x, speed, angle, turn = state["state"].unbind(-1)
        return (0.1 * x + 0.3 * speed + 3 * angle + turn > 0).long()
    # pump energy until the pendulum is about to stand, then hold it
    angle, speed = state["state"].unbind(-1)
    energy = speed.square() / 6 + 5 * angle.cos()
    hold, pump = -10 * angle.sin() - 3 * speed, (5 - energy) * speed * 5
    swing = torch.where(angle.cos() > 0.9, hold, pump)
    return swing.clamp(-2, 2).float().unsqueeze(-1)


def match(name: str, level: str, count: int, share: float | Tensor, tolerance: float) -> Tensor:
    """Play `count` episodes on both sides and compare every number.

    Args:
        share: how often the expert plays, in all episodes or in each, `[count]`; otherwise actions
            are random.
        tolerance: of observations and rewards.

    Returns:
        The returns, `[count]`.
    """
    generator = torch.Generator().manual_seed(0)
    env: Any = getattr(ours, f"{name}Env")(count, level=level, seed=0)
    tasks = originals(name, level, count)
    seen = [task.reset()[0] for task in tasks]
    layouts = [layout(name, task.unwrapped) for task in tasks]
    streams = [task.unwrapped._np_random for task in tasks]
    # one number that was drawn for the layout is not of the stream of steps
    used = [0] * count

    def drawn(_: Any = None) -> Tensor:
        numbers = []
        for i, stream in enumerate(streams):
            # what has ended draws no more
            at = min(used[i], len(stream.drawn) - 1)
            numbers.append(np.atleast_1d(stream.drawn[at]))
            used[i] += 1
        return torch.from_numpy(np.stack(numbers))

    if name == "MultiarmedBandit":
        env._chance = drawn
    if name.startswith("Noisy"):
        env._normal = drawn
    given = {key: torch.tensor(np.stack([x[key] for x in layouts])) for key in layouts[0]}
    data = env.reset(TensorDict(given, [count]), set_state=True)
    alive = np.ones(count, dtype=bool)
    returns = torch.zeros(count)
    compare(data["observation"], seen, alive, tolerance)
    while alive.any():
        best = expert(name, env)
        noise = env.full_action_spec["action"].rand()
        lucky = torch.rand(count, generator=generator) < share
        action = torch.where(lucky.view(-1, *(1,) * (best.ndim - 1)), best, noise)
        results: list[Any] = []
        for i, task in enumerate(tasks):
            results.append(task.step(_translate(task, action[i])) if alive[i] else None)
        data = env.step(data.set("action", action))["next"]
        seen = [result and result[0] for result in results]
        compare(data["observation"], seen, alive, tolerance)
        for i in np.flatnonzero(alive):
            _, reward, terminated, truncated, _ = results[i]
            assert abs(float(data["reward"][i]) - reward) <= max(tolerance, 1e-6)
            assert bool(data["terminated"][i]) == terminated
            assert bool(data["truncated"][i]) == truncated
            assert bool(data["done"][i]) == (terminated or truncated)
            returns[i] += reward
            alive[i] = not (terminated or truncated)
    return returns


def compare(observation: Tensor, seen: list[Any], alive: np.ndarray, tolerance: float) -> None:
    """Every row that plays shows what the original shows."""
    for i in np.flatnonzero(alive):
        expected = torch.as_tensor(np.asarray(seen[i]), dtype=torch.float32)
        torch.testing.assert_close(observation[i], expected, atol=tolerance, rtol=0)


def _translate(task: Any, action: Tensor) -> Any:
    space = task.action_space
    if hasattr(space, "nvec"):
        rows, columns = space.nvec
        return np.array(np.unravel_index(int(action), (rows, columns)))
    return int(action) if hasattr(space, "n") else action.numpy()
