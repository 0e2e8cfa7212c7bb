"""Differentiable Neural Computer: a memory that tracks free cells and the order of writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_shm.modules._addressing import (
    Controller,
    ExternalMemoryCell,
    content_weights,
    erase_and_add,
)

# lower bound of a usage, whose logarithm stays finite
_EPS = 1e-6


class DNC(ExternalMemoryCell):
    """A controller with a matrix of cells that it writes, frees, and reads in any order.

    With cells `M` `[N, W]`, usage `u`, precedence `p`, links `L`, one write head and `R` read heads
    (all but `h` and `x` also depend on what the controller asks for: keys `k`, strengths `beta`,
    gates `g`, `f`, erase vector `e`, write vector `v`, read modes `pi`):

        h_t = LSTM([x_t, r_{t-1}])                    controller
        u_t = (u + w - u ⊙ w) ∏_i (1 - f_i w^r_i)     usage: written cells, less the freed ones
        a_t = (1 - u_t) ∏_{j used less} u_t[j]        allocation: the cell that is used least
        c_t = softmax(beta cosine(M, k))              content: the cells that look like the key
        w_t = g^w (g^a a_t + (1 - g^a) c_t)           write weights
        M_t = M ⊙ (1 - w_t ⊗ e) + w_t ⊗ v             erase and add
        L_t = (1 - w_t[i] - w_t[j]) L + w_t[i] p[j]   cell i was written after j; L[i, i] = 0
        p_t = (1 - sum w_t) p + w_t                   the cell that was written last
        w^r_t = pi_1 L_tᵀ w^r + pi_2 c^r_t + pi_3 L_t w^r   backward, content, forward
        r_t = w^r_t M_t                               what is read
        y_t = W_y [h_t, r_t] + b_y

    Among cells of equal usage, the first comes first. No gradient flows through the order of the
    usages, as in the paper.

    Source: Graves et al., Hybrid computing using a neural network with dynamic external memory
    (Nature 2016), Methods. The lower bound on the usage is that of the authors' released code,
    repository `google-deepmind/dnc`: `dnc/addressing.py`.

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
    `reads` `[R, W]`, `usage` `[N]`, `precedence` `[N]`, `link` `[N, N]`, `write_weights` `[N]`,
    `read_weights` `[R, N]`, and, with an LSTM, its `hidden` and `cell` `[hidden_size]`. The method
    `unpack` names them.

    Raises:
        ValueError: a size is not positive, or an option is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_shm.modules import DNC
        >>> cell = DNC(input_size=5, output_size=3, num_cells=8)
        >>> y, memory, _ = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 392]))
        >>> cell.unpack(memory)["usage"].shape
        torch.Size([2, 8])
    """

    eye: Tensor

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        num_cells: int = 16,
        cell_size: int = 16,
        num_reads: int = 2,
        hidden_size: int = 64,
        controller: Controller = "lstm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            num_cells=num_cells,
            cell_size=cell_size,
            num_reads=num_reads,
            hidden_size=hidden_size,
            controller=controller,
            # write key, read keys, strengths of all keys, write vector, all gates, read modes
            interface=(
                cell_size,
                num_reads * cell_size,
                1 + num_reads,
                cell_size,
                cell_size + num_reads + 2,
                num_reads * 3,
            ),
            parts={
                "usage": (num_cells,),
                "precedence": (num_cells,),
                "link": (num_cells, num_cells),
                "write_weights": (num_cells,),
                "read_weights": (num_reads, num_cells),
            },
            device=device,
            dtype=dtype,
        )
        self.num_cells = num_cells
        self.cell_size = cell_size
        self.num_reads = num_reads
        eye = torch.eye(num_cells, dtype=torch.bool, device=device)
        self.register_buffer("eye", eye, persistent=False)

    def access(self, interface: tuple[Tensor, ...], parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write to one place and read from several, see `ExternalMemoryCell.access`."""
        write_key, read_keys, strengths, value, gates, modes = interface
        read_keys = read_keys.unflatten(1, (self.num_reads, self.cell_size))
        write_strength, read_strengths = (1 + F.softplus(strengths)).split((1, self.num_reads), 1)
        sizes = (self.cell_size, self.num_reads, 1, 1)
        erase, free, allocation_gate, write_gate = torch.sigmoid(gates).split(sizes, 1)
        modes = torch.softmax(modes.unflatten(1, (self.num_reads, 3)), -1)

        usage = _update_usage(parts["usage"], parts["write_weights"], parts["read_weights"], free)
        memory = parts["memory"]
        content = content_weights(memory, write_key.unsqueeze(1), write_strength).squeeze(1)
        write = write_gate * torch.lerp(content, allocation(usage), allocation_gate)
        memory = erase_and_add(memory, write, erase, value)
        precedence = parts["precedence"]
        link = self._update_link(parts["link"], write, precedence)
        precedence = torch.addcmul(write, 1 - write.sum(1, keepdim=True), precedence)

        content = content_weights(memory, read_keys, read_strengths)
        backward, forward = parts["read_weights"] @ link, parts["read_weights"] @ link.mT
        ways = torch.stack([backward, content, forward], 2)
        read = (modes.unsqueeze(2) @ ways).squeeze(2)
        return {
            "memory": memory,
            "reads": read @ memory,
            "usage": usage,
            "precedence": precedence,
            "link": link,
            "write_weights": write,
            "read_weights": read,
        }

    def _update_link(self, link: Tensor, write: Tensor, precedence: Tensor) -> Tensor:
        after, before = write.unsqueeze(2), write.unsqueeze(1)
        link = torch.addcmul((1 - after - before) * link, after, precedence.unsqueeze(1))
        return link.masked_fill(self.eye, 0)


def allocation(usage: Tensor) -> Tensor:
    """Weights to write to the cells that are used least.

    A cell's weight is what is unused of it, times the usages of all cells that are used less.

    Args:
        usage: of shape `[B, N]`, between 0 and 1.

    Returns:
        Weights of shape `[B, N]` that sum to at most one.
    """
    index = torch.arange(usage.shape[1], device=usage.device)
    this, other = usage.unsqueeze(2), usage.unsqueeze(1)
    # to compare all pairs costs what the links cost anyway, and needs neither sort nor scatter
    used_less = (other < this) | ((other == this) & (index < index.unsqueeze(1)))
    usage = _EPS + (1 - _EPS) * usage.clamp(0, 1)
    # a product by logarithms: its gradient needs no division by zero
    log_product = (used_less.to(usage.dtype) @ usage.log().unsqueeze(2)).squeeze(2)
    return (1 - usage) * torch.exp(log_product)


def _update_usage(usage: Tensor, write: Tensor, read: Tensor, free: Tensor) -> Tensor:
    kept = (1 - free.unsqueeze(2) * read).prod(1)
    return (usage + write - usage * write) * kept
