"""An episode as a moving picture, with the memory beside it."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import (
    EnvBase,
    ExplorationType,
    TensorDictPrimer,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm.envs import PointRobotEnv, WindEnv
from torchrl_shm.figures.panels import (
    HEIGHT,
    as_matrix,
    draw_matrices,
    draw_paths,
    draw_series,
)
from torchrl_shm.training.evaluation import TEST_SEED

_GAP = 8
_HEADER = 18


@dataclass(frozen=True)
class Episode:
    """What `record_episode` saw, at the reset and after each of `T` steps.

    Attributes:
        frames: pictures, uint8 of shape `[T + 1, H, W, 3]`.
        memories: what the agent remembers as a matrix, `[T + 1, M, N]`; `None` without a memory.
        rewards: rewards of the steps, `[T]`.
    """

    frames: Tensor
    memories: Tensor | None
    rewards: Tensor

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.double().sum())


@torch.no_grad()
def record_episode(policy: TensorDictModuleBase, env: EnvBase, *, seed: int = 0) -> Episode:
    """Play the first environment's episode of `evaluate(policy, env, seed=seed)`, take pictures.

    A picture is what `render(0)` of the environment returns, uint8 of shape `[H, W, 3]`, if its
    class has a method `render(index)`. For `WindEnv` and `PointRobotEnv` it is the path so far with
    the goal and the wind. For all others it is observation, action and reward of the last 40
    steps, a column each: blue is positive, red negative, and each number is scaled by the largest
    absolute value that it has in the episode.

    A memory `[M, N]`, as that of `SHMModule`, is kept as it is. States of other shapes, and
    matrices more than four times as long as wide, are laid out row by row in a square.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of torch's default generator meanwhile; chooses what the environment draws, too.

    Returns:
        The episode.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> from torchrl_shm.figures import record_episode
        >>> env = WindEnv(1, max_steps=5)
        >>> policy = make_actor_critic(env, SHMModule).get_policy_operator()
        >>> episode = record_episode(policy, env)
        >>> episode.frames.shape, episode.memories.shape
        (torch.Size([6, 240, 240, 3]), torch.Size([6, 24, 24]))
    """
    transforms = get_env_transforms_from_module(policy)
    state_keys = _state_keys(transforms)
    transformed = TransformedEnv(env, transforms)
    base: Any = env
    while isinstance(base, TransformedEnv):
        base = base.base_env
    in_plane = isinstance(base, (WindEnv, PointRobotEnv))
    render = base.render if not in_plane and _has_render(base) else None
    boards: list[Tensor] = []
    observations: list[Tensor] = []
    actions: list[Tensor] = []
    rewards: list[Tensor] = []
    states: list[list[Tensor]] = []
    cuda = [env.device] if env.device is not None and env.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        transformed.set_seed(TEST_SEED + seed)
        data = transformed.reset()
        going = torch.ones_like(data["done"])
        while True:
            observations.append(_numbers(data["observation"][0]))
            states.append([data[key][0].float().cpu() for key in state_keys])
            if render is not None:
                boards.append(torch.as_tensor(render(0)))
            if not bool(going[0]):
                break
            if not bool(going.all()):
                # whoever has ended waits, as in `evaluate`: not all environments go on after that
                data["_step"] = going
            step = transformed.step(policy(data))
            data = step["next"]
            going = going & ~data["done"]
            actions.append(_numbers(step["action"][0]))
            rewards.append(data["reward"][0].float().reshape(1).cpu())
    memories = [torch.stack(state) for state in zip(*states, strict=True)]
    seen = torch.stack(observations)
    if boards:
        frames = torch.stack(boards)
    elif in_plane:
        frames = _paths(base, seen)
    else:
        # what led to an observation stands below it, and nothing led to the first
        led = {"action": torch.stack(actions), "reward": torch.stack(rewards)}
        before = {name: torch.cat([torch.zeros_like(x[:1]), x]) for name, x in led.items()}
        frames = draw_series({"observation": seen, **before})
    return Episode(frames, as_matrix(memories) if memories else None, torch.cat(rewards))


def save_animation(episode: Episode, path: str | Path, *, milliseconds: int = 120) -> None:
    """Write an episode as an animated GIF, with the memory beside each picture.

    The memory is drawn with blue for positive and red for negative elements; the colours are
    saturated at the 99th percentile of the episode's absolute values.

    Args:
        episode: what `record_episode` returned.
        path: file to write, ending in `.gif`.
        milliseconds: time per picture.

    Examples:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.figures import Episode, save_animation
        >>> frames = torch.zeros(3, 7, 11, 3, dtype=torch.uint8)
        >>> episode = Episode(frames, torch.randn(3, 8, 8), torch.ones(2))
        >>> save_animation(episode, mkdtemp() + "/episode.gif")
    """
    panels = [[_resize(frame)] for frame in episode.frames]
    if episode.memories is not None:
        for both, matrix in zip(panels, draw_matrices(episode.memories), strict=True):
            both.append(_resize(matrix))
    returns = [0.0, *episode.rewards.double().cumsum(0).tolist()]
    pages = [
        _page(both, f"step {step}:  return {total:.4g}")
        for step, (both, total) in enumerate(zip(panels, returns, strict=True))
    ]
    first, *others = pages
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _state_keys(transforms: Any) -> list[Any]:
    """Keys of what a policy remembers: floats that its transforms start on reset."""
    keys: list[Any] = []
    for transform in transforms.modules():
        if isinstance(transform, TensorDictPrimer):
            specs: Any = transform.primers
            keys += [key for key, spec in specs.items(True, True) if spec.dtype.is_floating_point]
    return keys


def _has_render(env: Any) -> bool:
    # of the class: batches of other environments pretend to have whatever these may have
    render = getattr(type(env), "render", None)
    return callable(render) and "index" in signature(render).parameters


def _numbers(x: Tensor) -> Tensor:
    return x.detach().float().reshape(-1).cpu()


def _paths(env: WindEnv | PointRobotEnv, positions: Tensor) -> Tensor:
    task: dict[str, Any]
    if isinstance(env, WindEnv):
        task = {"goal": env.goal.cpu(), "wind": env.wind[0].cpu()}
    else:
        task = {"goal": env.goal[0].cpu(), "max_steps": env.max_steps}
    return draw_paths(positions, goal_radius=env.goal_radius, **task)


def _resize(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(pixels.contiguous().numpy())
    width = max(1, round(image.width * HEIGHT / image.height))
    return image.resize((width, HEIGHT), Image.Resampling.NEAREST)


def _page(panels: list[Image.Image], title: str) -> Image.Image:
    """A picture and, if there is one, the memory beside it, below a line of text."""
    titles = [title, "memory"][: len(panels)]
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    page = Image.new("RGB", (width, HEIGHT + _HEADER), "white")
    draw, left = ImageDraw.Draw(page), 0
    for panel, text in zip(panels, titles, strict=True):
        draw.text((left + 2, 3), text, fill="black")
        page.paste(panel, (left, _HEADER))
        left += panel.width + _GAP
    return page
