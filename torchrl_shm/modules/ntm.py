"""Neural Turing Machine: a tape of cells that heads find by content or by moving along it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.modules._addressing import (
    Controller,
    ExternalMemoryCell,
    content_weights,
    erase_and_add,
)

# keeps the logarithm of a weight finite; see `sharpen`
_EPS = 1e-8


class NTM(ExternalMemoryCell):
    """A controller whose heads find cells by content, or next to where they were before.

    With cells `M` `[N, W]`, one write head and `R` read heads; each head is asked for a key `k`, a
    strength `beta`, a gate `g`, shifts `s` and a sharpness `gamma`, the write head also for an
    erase vector `e` and a write vector `v`:

        h_t = LSTM([x_t, r_{t-1}])                        controller
        c_t = softmax(beta cosine(M_{t-1}, k))            cells that look like the key
        g_t = g c_t + (1 - g) w_{t-1}                     or where the head was
        s_t[i] = s_- g_t[i+1] + s_0 g_t[i] + s_+ g_t[i-1] move by at most one cell, in a circle
        w_t = s_t^gamma / sum s_t^gamma                   sharpen
        M_t = M_{t-1} ⊙ (1 - w_t ⊗ e) + w_t ⊗ v           erase and add, the write head
        r_t = w_t M_t                                     read, the other heads
        y_t = W_y [h_t, r_t] + b_y

    All heads look for their cells in what was there before the write, and reading follows.

    Source: Graves et al., Neural Turing Machines (2014), section 3, equations 2 to 9.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        num_cells: number of cells `N`.
        cell_size: width `W` of a cell.
        num_reads: number of read heads `R`.
        hidden_size: width of the controller.
        controller: `"lstm"`, or `"linear"` for `h = tanh(W z + b)`, which has no state
            beside the cells.
        device: device of the parameters.
        dtype: dtype of the parameters.

    The memory is one vector of floats that holds the parts one after the other: `memory` `[N, W]`,
    `reads` `[R, W]`, `weights` `[1 + R, N]`, the write head first, and, with an LSTM, its `hidden`
    and `cell` `[hidden_size]`. The method `unpack` names them. The cells are stored as the
    difference to a learned initial content, so that zeros are the empty memory and yet no two
    cells have the same content. The weights of an empty memory are zero: sharpening makes
    them sum to one again, so that the first step finds cells by content, whatever its gate.

    Raises:
        ValueError: a size is not positive, or an option is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import NTM
        >>> cell = NTM(input_size=5, output_size=3, num_cells=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 288]))
        >>> cell.unpack(memory)["weights"].shape
        torch.Size([2, 2, 8])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        num_cells: int = 16,
        cell_size: int = 16,
        num_reads: int = 1,
        hidden_size: int = 64,
        controller: Controller = "lstm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        heads = 1 + num_reads
        super().__init__(
            input_size,
            output_size,
            num_cells=num_cells,
            cell_size=cell_size,
            num_reads=num_reads,
            hidden_size=hidden_size,
            controller=controller,
            # keys, strengths and sharpness, shifts of all heads, write vector, gates and erase
            # vector
            interface=(heads * cell_size, 2 * heads, 3 * heads, cell_size, heads + cell_size),
            parts={"weights": (heads, num_cells)},
            device=device,
            dtype=dtype,
        )
        self.cell_size = cell_size
        self.num_heads = heads
        self.content = nn.Parameter(torch.empty(num_cells, cell_size, device=device, dtype=dtype))
        # about as long as the content that is written
        nn.init.normal_(self.content, std=0.5)

    def access(self, interface: tuple[Tensor, ...], parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Find cells, write, then read; see `ExternalMemoryCell.access`."""
        keys, strengths, shifts, value, gates = interface
        keys = keys.unflatten(1, (self.num_heads, self.cell_size))
        strength, sharpness = F.softplus(strengths).chunk(2, 1)
        shifts = torch.softmax(shifts.unflatten(1, (self.num_heads, 3)), -1)
        gate, erase = torch.sigmoid(gates).split((self.num_heads, self.cell_size), 1)

        memory = self.content + parts["memory"]
        content = content_weights(memory, keys, strength)
        weights = torch.lerp(parts["weights"], content, gate.unsqueeze(2))
        weights = sharpen(shift(weights, shifts), 1 + sharpness)
        write, read = weights.split((1, self.num_heads - 1), 1)
        memory = erase_and_add(memory, write.squeeze(1), erase, value)
        reads = read @ memory
        return {"memory": memory - self.content, "reads": reads, "weights": weights}


def shift(weights: Tensor, shifts: Tensor) -> Tensor:
    """Move weights along a circle of cells.

    Args:
        weights: of shape `[B, K, N]`.
        shifts: how much moves by -1, 0 and +1 cells, of shape `[B, K, 3]`.

    Returns:
        Weights of shape `[B, K, N]`.
    """
    moved = torch.stack([weights.roll(-1, -1), weights, weights.roll(1, -1)], 2)
    return (shifts.unsqueeze(2) @ moved).squeeze(2)


def sharpen(weights: Tensor, sharpness: Tensor) -> Tensor:
    """Raise weights to a power and make them sum to one.

    Args:
        weights: of shape `[B, K, N]`, not negative.
        sharpness: the powers, of shape `[B, K]`, at least one.

    Returns:
        Weights of shape `[B, K, N]` that sum to one over the cells.
    """
    # by logarithms: powers of small weights would all vanish, and zero be divided by zero
    return torch.softmax(sharpness.unsqueeze(2) * torch.log(weights.clamp(min=0) + _EPS), -1)
