"""An episode as a moving picture, with the memory beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import colormaps
from PIL import Image
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm.modules import SHMModule

_HEIGHT = 240
_GAP = 8
# steps of observations that stand beside each other where a task has no picture
_HISTORY = 40


@dataclass(frozen=True)
class Episode:
    """What `record_episode` saw, at the reset and after each of `T` steps.

    Attributes:
        frames: pictures, uint8 of shape `[T + 1, H, W, 3]`.
        memories: the memory of an `SHMModule`, `[T + 1, H, H]`; `None` for other memories.
        total: sum of the rewards.
    """

    frames: Tensor
    memories: Tensor | None
    total: float


@torch.no_grad()
def record_episode(policy: TensorDictModuleBase, env: EnvBase, *, seed: int = 0) -> Episode:
    """Play one episode of the first environment with the mean action and take pictures.

    A picture is what `env.render(0)` returns, uint8 of shape `[H, W, 3]`. Tasks without `render`
    are shown as the observations of the last steps, a column each.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of torch's default generator meanwhile.

    Returns:
        The episode.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import make_actor_critic, record_episode
        >>> env = WindEnv(1, max_steps=5)
        >>> policy = make_actor_critic(env, SHMModule).get_policy_operator()
        >>> record_episode(policy, env).memories.shape
        torch.Size([6, 24, 24])
    """
    memory_key = next((m.memory_key for m in policy.modules() if isinstance(m, SHMModule)), None)
    transformed = TransformedEnv(env, get_env_transforms_from_module(policy))
    cuda = [env.device] if env.device is not None and env.device.type == "cuda" else []
    observations: list[Tensor] = []
    frames: list[Tensor] = []
    memories: list[Tensor] = []
    total = 0.0
    with torch.random.fork_rng(cuda), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        data = transformed.reset()
        while True:
            observations.append(data["observation"][0].detach().float().flatten().cpu())
            render = getattr(env, "render", None)
            frames.append(torch.as_tensor(render(0)) if render else _columns(observations))
            if memory_key is not None:
                memories.append(data[memory_key][0].float().cpu())
            if frames[1:] and bool(data["done"][0]):
                break
            data = transformed.step(policy(data))["next"]
            total += float(data["reward"][0])
    return Episode(torch.stack(frames), torch.stack(memories) if memories else None, total)


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
        >>> from torchrl_shm.training import Episode, save_animation
        >>> frames = torch.zeros(3, 7, 11, 3, dtype=torch.uint8)
        >>> save_animation(Episode(frames, torch.randn(3, 8, 8), 1.0), mkdtemp() + "/episode.gif")
    """
    panels = [_resize(frame) for frame in episode.frames]
    if episode.memories is not None:
        # the largest values of a memory are far beyond all others
        flat = episode.memories.abs().flatten().double()
        limit = float(flat.kthvalue(max(1, int(0.99 * len(flat)))).values) or 1.0
        scaled = (episode.memories / limit).clamp(-1, 1) / 2 + 0.5
        coloured = torch.from_numpy(colormaps["RdBu"](scaled.numpy(), bytes=True))[..., :3]
        panels = [_beside(*pair) for pair in zip(panels, map(_resize, coloured), strict=True)]
    first, *others = panels
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _resize(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(pixels.contiguous().numpy())
    width = max(1, round(image.width * _HEIGHT / image.height))
    return image.resize((width, _HEIGHT), Image.Resampling.NEAREST)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + _GAP + right.width, _HEIGHT), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


def _columns(observations: list[Tensor]) -> Tensor:
    """The last observations, newest on the right, as a picture of about 3 to 2."""
    recent = torch.stack(observations[-_HISTORY:], dim=-1).clamp(-1, 1)
    picture = torch.full((len(recent), _HISTORY, 3), 255, dtype=torch.uint8)
    coloured = colormaps["RdBu"]((recent / 2 + 0.5).numpy(), bytes=True)
    picture[:, -recent.shape[1] :] = torch.from_numpy(coloured)[..., :3]
    high, wide = max(1, _HISTORY * 2 // (3 * len(recent))), max(1, len(recent) * 3 // 80)
    return picture.repeat_interleave(high, 0).repeat_interleave(wide, 1)
