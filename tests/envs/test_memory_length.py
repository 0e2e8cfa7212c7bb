"""Memory length: the rules of bsuite's memory chain, transcribed to NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.envs._helpers import inject, step
from torchrl_shm.envs import MemoryLengthEnv


class Original:
    """One episode by the rules of `bsuite/environments/memory_chain.py`, told in NumPy."""

    def __init__(self, length: int, bits: np.ndarray, query: int) -> None:
        self.length, self.bits, self.query, self.time = length, bits, query, 0

    def observe(self) -> np.ndarray:
        seen = np.zeros(2 + len(self.bits), np.float32)
        seen[0] = 1 - self.time / self.length
        if self.time == self.length - 1:
            seen[1] = self.query
        if self.time == 0:
            seen[2:] = np.where(self.bits == 1, 1, -1)
        return seen

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """What is seen is of the time before the step: the clock moves on afterwards."""
        seen, done = self.observe(), self.time == self.length
        self.time += 1
        if not done:
            return seen, 0.0, False
        return seen, 1.0 if action == self.bits[self.query] else -1.0, True


@pytest.mark.parametrize(
    ("length", "num_bits"), [(1, 1), (2, 1), (3, 1), (30, 1), (1, 4), (2, 40), (17, 3)]
)
def test_steps_are_those_of_the_original(length: int, num_bits: int) -> None:
    rows = 50
    random = np.random.RandomState(0)
    bits = random.randint(2, size=(rows, num_bits))
    query = random.randint(num_bits, size=rows)
    originals = [Original(length, b, q) for b, q in zip(bits, query, strict=True)]
    env = MemoryLengthEnv(rows, length=length, num_bits=num_bits)
    data = inject(env, bits=torch.from_numpy(bits), query=torch.from_numpy(query))
    assert np.array_equal(env.bits.numpy(), bits)
    assert np.array_equal(env.query.numpy(), query)
    assert np.array_equal(data["observation"].numpy(), [o.observe() for o in originals])
    for name in ("previous_action", "success", "done"):
        assert not data[name].any()
    for t in range(env.max_steps):
        action = random.randint(2, size=rows)
        data = step(env, torch.from_numpy(action))
        seen, rewards, dones = zip(
            *(o.step(a) for o, a in zip(originals, action, strict=True)), strict=True
        )
        assert np.array_equal(data["observation"].numpy(), seen)
        assert data["reward"][:, 0].tolist() == list(rewards)
        assert data["terminated"][:, 0].tolist() == list(dones)
        assert data["previous_action"].argmax(-1).tolist() == action.tolist()
        assert data["done"].all() == (t == length)
    assert not data["truncated"].any()
    assert {-1, 1} == set(data["reward"][:, 0].tolist())
    assert torch.equal(data["success"], data["reward"] == 1)


def test_nothing_between_says_anything() -> None:
    env = MemoryLengthEnv(2, length=9)
    inject(env, bits=torch.tensor([[0], [1]]), query=torch.tensor([0, 0]))
    # the second step is the first that shows a time after the bits
    step(env, torch.tensor([0, 1]))
    for _ in range(9):
        data = step(env, torch.tensor([1, 0]))
        assert torch.equal(data["observation"][0], data["observation"][1])


def test_picture_shows_bits_question_and_answer() -> None:
    env = MemoryLengthEnv(2, length=2, num_bits=40)
    query = torch.tensor([3, 4])
    inject(env, bits=torch.arange(80).view(2, 40) % 2, query=query)
    colors = [(214, 96, 77), (255, 127, 14)]
    seen = []
    for t in range(4):
        picture = env.render(0).int()
        seen.append([bool(((picture - torch.tensor(c)).abs().amax(-1) < 8).any()) for c in colors])
        if t < 3:
            step(env, torch.tensor([1, 1]))
    # bits are shown twice, then the question and the answer
    assert seen == [[True, False], [True, False], [False, True], [False, True]]
    assert not torch.equal(env.render(0), env.render(1))


def test_bits_and_queries_are_uniform() -> None:
    env = MemoryLengthEnv(12_000, num_bits=4, seed=0)
    env.reset()
    # six standard deviations
    assert (env.bits.double().mean(0) - 0.5).abs().max() < 6 * 0.5 / 12_000**0.5
    found = torch.bincount(env.query, minlength=4)
    assert found.shape == (4,)
    assert (found - 3_000).abs().max() < 6 * (12_000 * 0.25 * 0.75) ** 0.5
    # all combinations of bits with each other and with the question
    code = (env.bits * torch.tensor([1, 2, 4, 8])).sum(-1) * 4 + env.query
    assert len(code.unique()) == 64


@pytest.mark.parametrize("num_bits", [1, 5])
def test_scores(num_bits: int) -> None:
    """What docs/tasks/memory_length.md says."""
    torch.manual_seed(0)
    env = MemoryLengthEnv(4_000, length=6, num_bits=num_bits, seed=0)
    for remembers, expected in ((True, 1.0), (False, 0.0)):
        data = env.reset()
        bits, query = data["observation"][:, 2:], torch.zeros(4_000, dtype=torch.int64)
        total = torch.zeros(4_000)
        for t in range(env.max_steps):
            answer = (bits.gather(1, query[:, None])[:, 0] > 0).long()
            data = step(env, answer if remembers else torch.randint(2, (4_000,)))
            # the question, for one step
            if t == env.length - 1:
                query = data["observation"][:, 1].long()
            total += data["reward"][:, 0]
        assert total.mean().item() == pytest.approx(expected, abs=0 if remembers else 0.1)


class TestMistakes:
    @pytest.mark.parametrize("name", ["length", "num_bits"])
    def test_arguments(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            MemoryLengthEnv(**{name: 0})

    @pytest.mark.parametrize(
        ("bits", "query", "message"),
        [
            ([[0, 2]], [0], '"bits" must be between 0 and 1, got 2'),
            ([[-1, 1]], [0], '"bits" must be between 0 and 1, got -1'),
            ([[0, 1]], [2], '"query" must be between 0 and 1, got 2'),
            ([[0]], [0], r'"bits" of shape \(1, 2\), got \(1, 1\)'),
            ([[0, 1]], [[0]], r'"query" of shape \(1,\), got \(1, 1\)'),
        ],
    )
    def test_layouts(self, bits: list[Any], query: list[Any], message: str) -> None:
        env = MemoryLengthEnv(1, num_bits=2)
        with pytest.raises(ValueError, match=message):
            inject(env, bits=torch.tensor(bits), query=torch.tensor(query))
