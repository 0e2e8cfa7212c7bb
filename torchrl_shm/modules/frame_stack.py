"""Frame stack: the last few inputs side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_shm.modules.base_cell import BaseCell
from torchrl_shm.ops import causal_windows


class FrameStack(BaseCell):
    """A network that sees the last `k` inputs at once, and nothing older.

    With inputs of zero before the episode's start:

        w_t = [x_{t-k+1}, ..., x_t]
        y_t = tanh(W_2 tanh(W_1 w_t + b_1) + b_2)

    The network is that of `make_mlp`, so the two differ only in what they see.

    Source: Mnih et al., Human-level control through deep reinforcement learning (Nature 2015),
    Methods; a baseline of Morad et al., POPGym (ICLR 2023). POPGym first compresses every input to
    a `k`-th of the hidden size; here the hidden layer reads the inputs themselves.

    The memory holds the last `k - 1` inputs, oldest first: `[B, k - 1, D]`.

    Args:
        input_size: number of input features, `D`.
        output_size: number of output features.
        hidden_size: width of the hidden layer.
        num_frames: number of inputs that are seen at once, `k`.
        device: device of the parameters.
        dtype: dtype of the parameters and the memory.

    Raises:
        ValueError: a size is not positive, or `num_frames` is less than 2.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import FrameStack
        >>> cell = FrameStack(input_size=5, output_size=3, num_frames=4)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 3, 5]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        hidden_size: int = 64,
        num_frames: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_frames < 2:
            raise ValueError(
                f"num_frames={num_frames} must be at least 2; for the current input alone use "
                "make_mlp"
            )
        super().__init__(
            input_size, output_size, (num_frames - 1, input_size), hidden_size=hidden_size
        )
        self.hidden = nn.Linear(num_frames * input_size, hidden_size, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_size, output_size, device=device, dtype=dtype)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; see `BaseCell.run_step`."""
        window = torch.cat([memory, x.unsqueeze(1)], 1)
        return self._read(window), window[:, 1:]

    def run_sequence(
        self, x: Tensor, memory: Tensor, is_init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run over a whole sequence, all steps at once; see `BaseCell.run_sequence`."""
        windows, memory = causal_windows(x, memory, is_init)
        return self._read(windows), memory

    def _read(self, windows: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(windows.flatten(-2)))
        return torch.tanh(self.out(hidden))
