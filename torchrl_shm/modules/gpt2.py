"""GPT-2: attention to the last steps, with a cache of their keys and values."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.checks import check_option
from torchrl_shm.modules.base_cell import BaseCell

Positions = Literal["sine", "relative"]
"""How attention is told the order of the steps; see `GPT2`."""


class GPT2(BaseCell):
    """A transformer that sees the last `window` steps of the episode.

    With `p_t` the number of steps since the episode's start and `h_t = W_e x_t + b_e`, plus the
    sine waves of `p_t` if `positions="sine"`, each layer computes

        q_t, k_t, v_t = W_qkv LayerNorm(h_t) + b_qkv           for each head
        a_t = sum_s softmax_s(q_t · k_s / sqrt(d)) v_s         t - window < s <= t, in the episode
        h_t <- h_t + W_a a_t + b_a
        h_t <- h_t + W_2 gelu(W_1 LayerNorm(h_t) + b_1) + b_2  4 * width in between

    and the output is `y_t = W_o LayerNorm(h_t) + b_o`. As every layer looks back, `n` layers see
    `n * (window - 1)` steps before the current one.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section
    2.3, for the layers and their initialization; Ni et al., When Do Transformers Shine in RL?
    (NeurIPS 2023), repository `twni2016/Memory-RL`: `policies/seq_models/gpt2_vanilla.py`, for its
    use as a memory with sine positions; Beltagy et al., Longformer (2020), section 3.1, for the
    sliding window. Dropout is left out, so that the policy that acted is the one that learns.

    The memory `[B, 1 + num_layers * (window - 1) * 2 * width]` holds the number of steps so far,
    exact up to 2^24 in float32, and, for each layer, keys and values of the last `window - 1`
    steps, oldest first. Once an input or the memory is not finite, outputs are NaN until the next
    reset.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        width: number of features `h_t`.
        window: number of steps that each layer attends to, the current one included.
        num_layers: number of layers.
        num_heads: number of heads of each layer, of `width / num_heads` features.
        positions: how the order of the steps is told.
            `"sine"`: waves of the absolute position are added to the embedded input (Vaswani et
            al., Attention Is All You Need, 2017, section 3.5);
            `"relative"`: queries and keys are rotated by their position, so that their product
            depends on the distance alone (Su et al., RoFormer, 2021, section 3.2.2).
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is too small, the heads do not divide the width in even parts, or
            `positions` is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import GPT2
        >>> cell = GPT2(input_size=5, output_size=3, width=16, window=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 225]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        width: int = 64,
        window: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        positions: Positions = "sine",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window < 2:
            raise ValueError(f"window={window} must be at least 2, or nothing is remembered")
        super().__init__(
            input_size,
            output_size,
            (1 + num_layers * (window - 1) * 2 * width,),
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        if width % (2 * num_heads):
            raise ValueError(
                f"width={width} must be a multiple of 2 * num_heads={2 * num_heads}: sine waves "
                "and rotations come in pairs of features"
            )
        check_option("positions", positions, Positions)
        self.width = width
        self.window = window
        self.positions: Positions = positions
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        rotate = positions == "relative"
        self.embed = nn.Linear(input_size, width, **factory)
        layers = [_Layer(width, num_heads, rotate, **factory) for _ in range(num_layers)]
        self.layers: Any = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width, **factory)
        self.out = nn.Linear(width, output_size, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the layers as GPT-2 does, and what is around them as torch does."""
        for module in (self.embed, self.norm, self.out):
            module.reset_parameters()
        for layer in self.layers:
            layer.reset_parameters(len(self.layers))

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        y, memory = self.run_sequence(x.unsqueeze(1), memory, None)
        return y.squeeze(1), memory

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence, in blocks side by side; see `BaseCell.run_sequence`."""
        # attention weighs what it must not see with zero, and 0 * NaN is NaN, also in the backward:
        # so it runs on finite values only, and outputs that depend on others are set to NaN below
        usable, usable_memory = x.isfinite().all(-1), memory.isfinite().all(-1)
        x = torch.where(usable.unsqueeze(-1), x, 0)
        memory = torch.where(usable_memory.unsqueeze(-1), memory, 0)
        count, caches = memory[:, 0].clamp(min=0), memory[:, 1:]
        caches = caches.unflatten(1, (len(self.layers), self.window - 1, 2 * self.width))
        position, broken = _follow(count, usable, usable_memory, is_init)

        # padding fills the last block; no step attends to it
        steps = x.shape[1]
        blocks = -(-steps // self.window)
        block = -(-steps // blocks)
        extra = blocks * block - steps
        visible = self._visible(F.pad(position, (0, extra)), block)
        h = self.embed(x)
        if self.positions == "sine":
            h = h + torch.cat(_waves(position, self.width // 2), -1)
        h = F.pad(h, (0, 0, 0, extra))
        ends: list[Tensor] = []
        for layer, cache in zip(self.layers, caches.unbind(1), strict=True):
            h, keys_values = layer(h, cache, visible)
            ends.append(keys_values[:, steps : steps + self.window - 1])
        y = self.out(self.norm(h[:, :steps]))

        count = position[:, -1:] + 1
        # steps that the next one must not see are zero in the memory
        age = torch.arange(self.window - 1, 0, -1, device=x.device)
        seen = (age <= count).unsqueeze(-1).unsqueeze(1)
        cache = torch.where(seen, torch.stack(ends, 1), 0)
        memory = torch.cat([count, cache.flatten(1)], 1)
        broken = broken.unsqueeze(-1)
        return torch.where(broken, torch.nan, y), torch.where(broken[:, -1], torch.nan, memory)

    def _visible(self, position: Tensor, block: int) -> Tensor:
        """Which of the cached steps and its own block each step attends to, `[B * N, 1, C, S]`."""
        past = self.window - 1
        place = torch.arange(past + block, device=position.device)
        distance = place[past:].unsqueeze(1) - place
        in_window = (distance >= 0) & (distance <= past)
        # no further back than the start of the episode
        return in_window & (distance <= position.reshape(-1, 1, block, 1))

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return f"window={self.window}, positions={self.positions!r}"


class _Layer(nn.Module):
    """Attention and a network of two maps, both added to what comes in."""

    def __init__(self, width: int, num_heads: int, rotate: bool, **factory: Any) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.rotate = rotate
        self.attention_norm = nn.LayerNorm(width, **factory)
        self.attention_in = nn.Linear(width, 3 * width, **factory)
        self.attention_out = nn.Linear(width, width, **factory)
        self.mlp_norm = nn.LayerNorm(width, **factory)
        self.mlp_in = nn.Linear(width, 4 * width, **factory)
        self.mlp_out = nn.Linear(4 * width, width, **factory)

    def reset_parameters(self, num_layers: int) -> None:
        """Draw small weights, smaller for the two maps of each layer that add to `h`."""
        for norm in (self.attention_norm, self.mlp_norm):
            norm.reset_parameters()
        adds = 0.02 / math.sqrt(2 * num_layers)
        maps = (self.attention_in, self.attention_out, self.mlp_in, self.mlp_out)
        for linear, std in zip(maps, (0.02, adds, 0.02, adds), strict=True):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, h: Tensor, cache: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Map `h` `[B, T, W]`; `cache` and the keys and values returned are `[B, ..., 2 * W]`."""
        width = h.shape[-1]
        projected = self.attention_in(self.attention_norm(h))
        keys_values = torch.cat([cache, projected[..., width:]], 1)
        h = h + self.attention_out(self._attend(projected[..., :width], keys_values, visible))
        return h + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(h)))), keys_values

    def _attend(self, q: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        block, size = visible.shape[-2:]
        # block n attends to its own steps and to those of a window before it: [B, N, 2 W, S]
        windows = keys_values.unfold(1, size, block)
        windows = windows.flatten(0, 1).unflatten(1, (2, *self.heads)).mT
        k, v = windows.unbind(1)
        heads = q.reshape(visible.shape[0], block, *self.heads).transpose(1, 2)
        if self.rotate:
            place = torch.arange(size, device=q.device, dtype=q.dtype)
            cos, sin = _waves(place, k.shape[-1] // 2)
            k = _rotate(k, cos, sin)
            heads = _rotate(heads, cos[-block:], sin[-block:])
        read = F.scaled_dot_product_attention(heads, k, v, attn_mask=visible)
        return read.transpose(1, 2).reshape(q.shape)


def _follow(
    count: Tensor, usable: Tensor, usable_memory: Tensor, is_init: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Positions `[B, T]` in the episode, and whether a value of it was not finite, `[B, T]`."""
    index = torch.arange(-1, usable.shape[1], device=count.device)
    # the memory counts as a step before the first one
    usable = torch.cat([usable_memory.unsqueeze(1), usable], 1)
    if is_init is None:
        # without cummax, which ONNX does not have
        return count.unsqueeze(1) + index[1:], (~usable).cumsum(1)[:, 1:] > 0
    start = torch.where(F.pad(is_init, (1, 0)), index, -1).cummax(1).values
    broken = torch.where(usable, -2, index).cummax(1).values >= start
    position = torch.where(start < 0, count.unsqueeze(1) + index, (index - start).to(count.dtype))
    return position[:, 1:], broken[:, 1:]


def _waves(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions `[...]`, at wavelengths from 2 pi to 10000 times as long."""
    index = torch.arange(size, device=position.device, dtype=position.dtype)
    angle = position.unsqueeze(-1) * 10000.0 ** (-index / size)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
