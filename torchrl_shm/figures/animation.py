"""An episode as an animation, with memory and calibration beside it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase, TensorDictPrimer, TransformedEnv
from torchrl.modules.utils import get_env_transforms_from_module

from torchrl_shm.envs.contract import Plane, ask_env, play_test
from torchrl_shm.figures.panels import HEIGHT, as_matrix, draw_matrices, draw_path, draw_series

if TYPE_CHECKING:
    from PIL import Image

_GAP = 8
_HEADER = 18


@dataclass(frozen=True)
class Episode:
    """The result of `record_episode`, at the reset and after each of `T` steps.

    Attributes:
        frames: pictures, uint8 of shape `[T + 1, H, W, 3]`.
        memories: what the agent remembers, as a matrix, `[T + 1, M, N]`; `None` without a memory.
        rewards: rewards of the steps, `[T]`.
        calibrations: the matrix C of the step that led to each memory, 1 at the reset,
            `[T + 1, M, N]`; `None` for other memories than SHM.
    """

    frames: Tensor
    memories: Tensor | None
    rewards: Tensor
    calibrations: Tensor | None = None

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.double().sum())


@torch.no_grad()
def record_episode(
    policy: TensorDictModuleBase, env: EnvBase, *, seed: int = 0, deterministic: bool = True
) -> Episode:
    """Play the episode of the first environment in `evaluate` with the same seed and actions.

    For a task in the plane (`plane()` of the environment, see `BatchedEnv`), a picture is the path
    so far, the goal and the drift. For other environments with a method `render(index)` it is the
    result of `render(index=0)`, uint8 of shape `[H, W, 3]`, and where the policy reads such a
    picture, it is that. For all others it is what the policy reads, the action and the reward of
    the last 40 steps, a column each: blue is positive, red negative, and each number is scaled by
    its largest absolute value in the episode.

    A memory `[M, N]`, as that of `SHMModule`, is kept as it is. States of other shapes, and
    matrices more than four times as long as wide, are arranged in a square. Where the policy has
    one memory whose cell has a method `calibrate`, as `SHM` has, its calibrations are kept, too.

    Args:
        policy: the policy; its memory's transforms are added to the environment.
        env: environment of shape `[B]` that ends every episode by itself.
        seed: seed of torch's default generator meanwhile, and of the environment.
        deterministic: take the mean, or the most likely action; else sample it, as in training.

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
        >>> episode.calibrations.shape
        torch.Size([6, 24, 24])
    """
    transforms = get_env_transforms_from_module(policy)
    state_keys = _state_keys(transforms)
    transformed = TransformedEnv(env, transforms, auto_unwrap=False)
    policy_keys: Any = ask_env(env, "policy_keys", ("observation",))
    plane: Callable[[], Plane | None] = ask_env(env, "plane", lambda: None)
    pictures: list[Tensor] = []
    seen: list[dict[Any, Tensor]] = []
    states: list[list[Tensor]] = []
    calibrations: list[Tensor] = []
    actions: list[Tensor] = []
    rewards: list[Tensor] = []
    with play_test(transformed, seed, deterministic), _watch(policy, calibrations):
        data = transformed.reset()
        task = plane()
        going = torch.ones_like(data["done"])
        while True:
            seen.append({key: data[key][0].cpu() for key in policy_keys})
            states.append([data[key][0].float().cpu() for key in state_keys])
            if task is None and (picture := _picture(env, seen[-1])) is not None:
                pictures.append(picture)
            if not bool(going[0]):
                break
            if not bool(going.all()):
                # environments that have ended wait, as in `evaluate`, so all can be stepped
                data["_step"] = going
            step = transformed.step(policy(data))
            data = step["next"]
            going = going & ~data["done"]
            actions.append(step["action"][0].cpu())
            rewards.append(data["reward"][0].float().reshape(1).cpu())
    if task is not None:
        frames = draw_path(torch.stack([x["observation"] for x in seen]), task)
    elif pictures:
        frames = torch.stack(pictures)
    else:
        # the action and the reward stand below the observation that they led to
        led = {"action": _numbers(actions), "reward": torch.stack(rewards)}
        before = {name: torch.cat([torch.zeros_like(x[:1]), x]) for name, x in led.items()}
        entries = {str(key): _numbers([x[key] for x in seen]) for key in policy_keys}
        frames = draw_series({**entries, **before})
    memories = [torch.stack(state) for state in zip(*states, strict=True)]
    return Episode(
        frames,
        as_matrix(memories) if memories else None,
        torch.cat(rewards),
        torch.stack([torch.ones_like(calibrations[0]), *calibrations]) if calibrations else None,
    )


def save_animation(episode: Episode, path: str | Path, *, milliseconds: int = 120) -> None:
    """Write an episode as moving pictures, with memory and calibration beside each.

    The memory is drawn with blue for positive and red for negative elements, the calibration with
    blue where it is above 1 and red where it is below; the colors are saturated at the 99th
    percentile of the episode's absolute values, and of those of C - 1.

    Args:
        episode: what `record_episode` returned.
        path: file to write, ending in `.gif`, or in `.webp`, which makes a fifth of the bytes.
        milliseconds: time per picture.

    Raises:
        ValueError: `path` ends in something else.

    Examples:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm.figures import Episode, save_animation
        >>> frames = torch.zeros(3, 7, 11, 3, dtype=torch.uint8)
        >>> episode = Episode(frames, torch.randn(3, 8, 8), torch.ones(2))
        >>> save_animation(episode, mkdtemp() + "/episode.gif")
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".webp"):
        raise ValueError(f"{str(path)!r}: animations end in .gif or .webp")
    panels = [[_resize(frame)] for frame in episode.frames]
    gates = None if episode.calibrations is None else episode.calibrations - 1
    for matrices in (episode.memories, gates):
        if matrices is not None:
            for row, matrix in zip(panels, draw_matrices(matrices), strict=True):
                row.append(_resize(matrix))
    returns = [0.0, *episode.rewards.double().cumsum(0).tolist()]
    pages = [
        _page(row, f"step {step}:  return {total:.4g}")
        for step, (row, total) in enumerate(zip(panels, returns, strict=True))
    ]
    first, *others = pages
    how: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, **how)


def _state_keys(transforms: Any) -> list[Any]:
    """Keys of the memory of a policy: floats that its transforms add at a reset."""
    keys: list[Any] = []
    for transform in transforms.modules():
        if isinstance(transform, TensorDictPrimer):
            specs: Any = transform.primers
            keys += [key for key, spec in specs.items(True, True) if spec.dtype.is_floating_point]
    return keys


def _picture(env: EnvBase, seen: dict[Any, Tensor]) -> Tensor | None:
    """Picture of the first environment, if it draws one by index or if the policy sees one."""
    render = ask_env(env, "render")
    # gymnasium's method of this name has no index
    if callable(render) and "index" in signature(render).parameters:
        picture: Any = render(index=0)
        if picture is not None:
            return torch.as_tensor(picture)
    images = [x for x in seen.values() if x.dtype == torch.uint8 and x.shape[2:] == (3,)]
    return images[0] if images else None


def _numbers(entries: list[Tensor]) -> Tensor:
    """Flatten what is seen at each step, `[T, N]`."""
    return torch.stack([entry.detach().float().reshape(-1) for entry in entries])


def _resize(pixels: Tensor) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(pixels.contiguous().numpy())
    width = max(1, round(image.width * HEIGHT / image.height))
    return image.resize((width, HEIGHT), Image.Resampling.NEAREST)


@contextmanager
def _watch(policy: nn.Module, calibrations: list[Tensor]) -> Generator[None, None, None]:
    """Keep the calibration of the first agent at every step, if exactly one cell has some.

    The cell itself is asked, for entries of the policy may be overwritten or left out.
    """
    cells: list[Any] = [x for x in policy.modules() if hasattr(x, "calibrate")]
    if len(cells) != 1:
        yield
        return
    (cell,) = cells
    take_step = cell.step

    def step(x: Tensor, *others: Any) -> Any:
        y, memory, choice = take_step(x, *others)
        calibrations.append(cell.calibrate(x, choice).flatten(0, -3)[0].cpu())
        return y, memory, choice

    cell.step = step
    try:
        yield
    finally:
        del cell.step


def _page(panels: list[Image.Image], title: str) -> Image.Image:
    """Put a picture, and what there is of memory and calibration, side by side below a title."""
    from PIL import Image, ImageDraw

    titles = [title, "memory", "calibration"][: len(panels)]
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    page = Image.new("RGB", (width, HEIGHT + _HEADER), "white")
    draw, left = ImageDraw.Draw(page), 0
    for panel, text in zip(panels, titles, strict=True):
        draw.text((left + 2, 3), text, fill="black")
        page.paste(panel, (left, _HEADER))
        left += panel.width + _GAP
    return page
