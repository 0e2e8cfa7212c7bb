"""Animations of an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl import set_auto_unwrap_transformed_env
from torchrl.data import Bounded
from torchrl.envs import RewardSum, TransformedEnv

from tests.envs._helpers import MAKERS, POPGYM
from tests.training._helpers import MEMORIES, Countdown, make_operator
from torchrl_shm import KeyToDoorEnv, PointRobotEnv, SHMModule, TMazeEnv, WindEnv
from torchrl_shm.envs import make_gym_env, make_popgym_env
from torchrl_shm.figures import Episode, record_episode
from torchrl_shm.figures import save_animation as save
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import evaluate

# sides of the matrix that each memory is drawn as
SIDES = {"shm": (24, 24), "gru": (8, 8), "lstm": (11, 12)}


def make_policy(env: Any, memory: Any = SHMModule) -> Any:
    torch.manual_seed(0)
    return make_actor_critic(env, memory).get_policy_operator()


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_episode_is_seen_from_reset_to_end(memory: str) -> None:
    env = TMazeEnv(3, length=6, seed=0)
    policy = make_policy(env, MEMORIES[memory])
    before = torch.get_rng_state()
    episode = record_episode(policy, env, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert episode.frames.shape == (env.max_steps + 1, 240, 360, 3)
    assert episode.frames.dtype == torch.uint8
    assert episode.rewards.shape == (env.max_steps,)
    assert (episode.calibrations is None) == (memory != "shm")
    if memory == "mlp":
        assert episode.memories is None
        return
    assert episode.memories is not None
    assert episode.memories.shape == (env.max_steps + 1, *SIDES[memory])
    # empty at the reset, written by every step; what fills up the square is no number
    values = episode.memories.nan_to_num(0)
    assert not values[0].any()
    assert (values[1:] != values[:-1]).flatten(1).any(1).all()


def test_calibrations_are_those_that_acted() -> None:
    env = TMazeEnv(3, length=6, seed=0)
    episode = record_episode(make_policy(env), env, seed=1)
    assert episode.memories is not None
    assert episode.calibrations is not None
    assert bool((episode.calibrations[0] == 1).all())
    # what a step adds to the calibrated memory is the outer product of two vectors
    added = episode.memories[1:] - episode.calibrations[1:] * episode.memories[:-1]
    sizes = torch.linalg.svdvals(added.double())
    assert bool((sizes[:, 1] < 1e-5 * sizes[:, 0]).all())
    added = episode.memories[1:] - episode.calibrations[:-1] * episode.memories[:-1]
    sizes = torch.linalg.svdvals(added.double())
    assert bool((sizes[1:, 1] > 1e-3 * sizes[1:, 0]).all())


@pytest.mark.parametrize("case", ["overwritten", "left out"])
def test_entries_of_the_policy_do_not_matter(case: str) -> None:
    env = TMazeEnv(1, length=6, seed=0)
    torch.manual_seed(0)
    place = "embedding" if case == "overwritten" else "features"
    memory = SHMModule(16, 16, in_key="embedding", out_key=place)
    embed = TensorDictModule(torch.nn.Linear(2, 16), ["observation"], ["embedding"])
    act = TensorDictModule(lambda x: x[..., :4].argmax(-1), [place], ["action"])
    policy: Any = TensorDictSequential(embed, memory, act)
    if case == "left out":
        policy.select_out_keys("action", *memory.out_keys)
    episode = record_episode(policy, env)
    assert episode.memories is not None
    assert episode.calibrations is not None
    added = episode.memories[1:] - episode.calibrations[1:] * episode.memories[:-1]
    sizes = torch.linalg.svdvals(added.double())
    assert bool((sizes[:, 1] < 1e-5 * sizes[:, 0]).all())
    # and the cell is left as it was
    assert "step" not in vars(memory.cell)


def test_two_memories_have_no_single_calibration() -> None:
    env = TMazeEnv(3, length=6, seed=0)
    operator = make_actor_critic(env, SHMModule, shared_memory=False)
    episode = record_episode(get_behavior(operator), env)
    assert episode.calibrations is None
    assert episode.memories is not None


class TestWhatIsPlayed:
    @pytest.mark.parametrize(
        "env",
        [
            WindEnv(max_steps=12, goal_radius=0.99, num_test_tasks=3, split="test"),
            PointRobotEnv(max_steps=12, goal_radius=0.9, num_test_tasks=3, split="test"),
            KeyToDoorEnv(3, frames=(2, 20, 2)),
        ],
        ids=lambda env: type(env).__name__,
    )
    @pytest.mark.parametrize("deterministic", [True, False])
    def test_it_is_an_episode_of_the_evaluation(self, env: Any, deterministic: bool) -> None:
        policy = make_policy(env)
        how: Any = {"seed": 3, "deterministic": deterministic}
        first: Any = evaluate(policy, env, **how, keep_rollout=True)
        # whatever was played in between
        env.rollout(5)
        episode = record_episode(policy, env, **how)
        assert torch.equal(episode.rewards, first.rollout["next", "reward"][0, :, 0])
        assert episode.total == first.returns[0]

    @pytest.mark.parametrize("kind", ["gym", "popgym"])
    def test_environments_in_python(self, kind: str) -> None:
        pytest.importorskip("popgym", reason="the original environments come with the extra popgym")
        make = {
            "gym": lambda: make_gym_env("CartPole-v1", 4, previous_action=True, seed=0),
            "popgym": lambda: make_popgym_env("VelocityOnlyCartPoleEasy", 4, seed=0),
        }[kind]
        env = make()
        policy = make_policy(env)
        episode = record_episode(policy, env)
        assert episode.total == pytest.approx(float(evaluate(policy, env).returns[0]))
        assert episode.frames.shape == (len(episode.rewards) + 1, 240, 360, 3)

    def test_whoever_has_ended_waits(self) -> None:
        waited: list[list[bool]] = []

        class Backwards(Countdown):
            """The first environment is the last to end."""

            def __init__(self) -> None:
                super().__init__(3)
                self.last = self.last.flip(0)

            def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
                going = tensordict.get("_step", None)
                waited.append([] if going is None else (~going).flatten().tolist())
                return super()._step(tensordict)

        env = Backwards()
        episode = record_episode(make_operator(env=env).get_policy_operator(), env)
        assert episode.rewards.tolist() == [1.0, 2.0, 3.0]
        assert waited == [[], [False, False, True], [False, True, True]]


# one of each kind of observation and action of POPGym, and all others
KINDS = [name for name in MAKERS if name not in POPGYM]
KINDS += ["Autoencode", "Concentration", "MineSweeper", "PositionOnlyCartPole"]


class Drawn(Countdown):
    def render(self, index: int) -> Tensor:
        return torch.full((4, 6, 3), 10 * self.step_count + index, dtype=torch.uint8)


class Window(Countdown):
    """TorchRL's and gymnasium's kind of method, for which there is nothing to see here."""

    def render(self) -> None:
        raise AssertionError


class Camera(Countdown):
    """Its observation is a picture."""

    policy_keys = ("pixels",)

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        shape = (num_envs, 4, 6, 3)
        self.observation_spec["pixels"] = Bounded(0, 255, shape=shape, dtype=torch.uint8)

    def _emit(self) -> TensorDict:
        picture = torch.full((*self.batch_size, 4, 6, 3), 10 * self.step_count, dtype=torch.uint8)
        return super()._emit().set("pixels", picture)


class TestPictures:
    @pytest.mark.parametrize("name", KINDS)
    def test_every_kind_of_environment(self, name: str) -> None:
        env = MAKERS[name](2, seed=0)
        frames = record_episode(make_policy(env), env).frames
        assert frames.dtype == torch.uint8
        steps, *size = frames.shape
        assert steps > 1
        rooms = name.startswith(("KeyToDoor", "VisualMatch"))
        assert size == [*((112, 176) if rooms else (240, 240 if env.plane() else 360)), 3]
        assert not torch.equal(frames[0], frames[-1])

    def test_below_transforms(self) -> None:
        env = MAKERS["KeyToDoor"](2)
        policy = make_policy(env)
        with set_auto_unwrap_transformed_env(False):
            episode = record_episode(policy, TransformedEnv(env, RewardSum()))
        assert torch.equal(episode.frames[-1], env.render(0))

    @pytest.mark.parametrize(
        ("make", "shape", "values"),
        [
            (Drawn, (2, 4, 6, 3), [0, 10]),
            (Camera, (2, 4, 6, 3), [0, 10]),
            (Window, (2, 240, 360, 3), None),
        ],
    )
    def test_environments_of_ones_own(self, make: Any, shape: Any, values: Any) -> None:
        env = make(2)
        frames = record_episode(make_policy(env), env).frames
        assert frames.shape == shape
        assert values is None or frames[:, 0, 0, 0].tolist() == values

    @pytest.mark.parametrize("env", [WindEnv(2, max_steps=9), PointRobotEnv(2, max_steps=9)])
    def test_paths(self, env: Any) -> None:
        frames = record_episode(make_policy(env), env).frames
        steps = 9 if isinstance(env, WindEnv) else 18
        assert frames.shape == (steps + 1, 240, 240, 3)
        has_wind = isinstance(env, WindEnv)
        assert count(frames[0], "#ff7f0e") > 10
        assert (count(frames[0], "#2ca02c") > 20) == has_wind
        # the second episode of Point Robot has a color of its own
        assert not count(frames[9], "#9467bd")
        assert bool(count(frames[-1], "#9467bd")) == (not has_wind)


def count(picture: Tensor, color: str) -> int:
    """Number of pixels that are about of a color."""
    wanted = torch.tensor([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int(((picture.int() - wanted).abs().amax(-1) < 16).sum())


class TestAnimation:
    def test_pictures_of_the_task_stand_left_of_the_memory(self, tmp_path: Path) -> None:
        frames = torch.zeros(3, 6, 12, 3, dtype=torch.uint8)
        frames[:, :, :, 1] = 200
        memories = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 4, 4)
        path = tmp_path / "episode.gif"
        rewards = torch.tensor([1.0, 2.0])
        save(Episode(frames, memories, rewards), path)
        with Image.open(path) as image:
            assert image.n_frames == 3
            # a line of text is above
            assert image.size == (480 + 8 + 240, 18 + 240)
            seen, texts = [], []
            for n in range(3):
                image.seek(n)
                picture = image.convert("RGB")
                texts.append(picture.crop((0, 0, 480, 18)).tobytes())
                assert picture.getpixel((100, 100)) == pytest.approx((0, 200, 0), abs=8)
                seen.append(picture.getpixel((600, 100)))
        (red, _, blue), middle, (last_red, _, last_blue) = seen
        assert red > blue
        assert last_blue > last_red
        assert min(middle) > 200
        # it says which step, and what was earned
        assert len(set(texts)) == 3
        save(Episode(frames, None, rewards), path)
        with Image.open(path) as image:
            assert image.size == (480, 258)

    def test_the_calibration_stands_right_of_the_memory(self, tmp_path: Path) -> None:
        frames = torch.zeros(2, 6, 12, 3, dtype=torch.uint8)
        matrices = torch.zeros(2, 4, 4)
        gates = torch.tensor([1.0, 0.5]).view(2, 1, 1).expand(2, 4, 4)
        path = tmp_path / "episode.webp"
        save(Episode(frames, matrices, torch.zeros(1), gates), path)
        with Image.open(path) as image:
            assert image.n_frames == 2
            assert image.size == (480 + 2 * (8 + 240), 18 + 240)
            image.seek(0)
            assert min(image.convert("RGB").getpixel((850, 100))) > 200
            image.seek(1)
            # it fades
            red, _, blue = image.convert("RGB").getpixel((850, 100))
            assert red > blue + 50

    def test_other_files(self, tmp_path: Path) -> None:
        episode = Episode(torch.zeros(2, 6, 12, 3, dtype=torch.uint8), None, torch.zeros(1))
        with pytest.raises(ValueError, match=r"episode\.mp4': animations end in \.gif or \.webp"):
            save(episode, tmp_path / "episode.mp4")
        assert not list(tmp_path.iterdir())

    def test_memory_that_is_no_number_any_more(self, tmp_path: Path) -> None:
        frames = torch.zeros(2, 6, 12, 3, dtype=torch.uint8)
        memories = torch.tensor([float("nan"), float("inf")]).view(2, 1, 1).expand(2, 4, 4)
        save(Episode(frames, memories, torch.zeros(1)), tmp_path / "episode.gif")
        with Image.open(tmp_path / "episode.gif") as image:
            assert image.n_frames == 2
