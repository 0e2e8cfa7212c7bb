"""Moving pictures of an episode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training._helpers import MEMORIES
from torchrl_shm import SHMModule, TMazeEnv, WindEnv
from torchrl_shm.training import Episode, evaluate, make_actor_critic, record_episode
from torchrl_shm.training import save_animation as save


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_episode_is_seen_from_reset_to_end(memory: str) -> None:
    torch.manual_seed(0)
    env = TMazeEnv(3, length=6, seed=0)
    policy = make_actor_critic(env, MEMORIES[memory]).get_policy_operator()
    before = torch.get_rng_state()
    episode = record_episode(policy, env, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(episode.frames) == env.max_steps + 1
    assert episode.frames.dtype == torch.uint8
    if memory != "shm":
        assert episode.memories is None
        return
    assert episode.memories is not None
    assert episode.memories.shape == (env.max_steps + 1, 24, 24)
    # empty at the reset, written by every step
    assert not episode.memories[0].any()
    assert (episode.memories[1:] != episode.memories[:-1]).flatten(1).any(1).all()


def test_total_is_the_return_of_the_evaluation() -> None:
    torch.manual_seed(0)
    policy = make_actor_critic(WindEnv(2), SHMModule).get_policy_operator()
    options = {"max_steps": 12, "goal_radius": 0.99, "split": "test"}
    total = record_episode(policy, WindEnv(**options), seed=3).total
    assert total == evaluate(policy, WindEnv(**options), seed=3).returns[0] > 0


def test_pictures_of_the_task_stand_left_of_the_memory(tmp_path: Path) -> None:
    frames = torch.zeros(3, 6, 12, 3, dtype=torch.uint8)
    frames[:, :, :, 1] = 200
    memories = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 4, 4)
    path = tmp_path / "episode.gif"
    save(Episode(frames, memories, 0.0), path)
    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.size == (480 + 8 + 240, 240)
        seen = []
        for n in range(3):
            image.seek(n)
            picture = image.convert("RGB")
            assert picture.getpixel((100, 100)) == pytest.approx((0, 200, 0), abs=8)
            seen.append(picture.getpixel((600, 100)))
    (red, _, blue), middle, (last_red, _, last_blue) = seen
    assert red > blue
    assert last_blue > last_red
    assert min(middle) > 200
    save(Episode(frames, None, 0.0), path)
    with Image.open(path) as image:
        assert image.size == (480, 240)
