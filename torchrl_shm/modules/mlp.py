"""The network without a memory, behind the signature of `make_memory`."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torchrl.modules import MLP

from torchrl_shm.checks import check_count


def make_mlp(
    input_size: int,
    output_size: int,
    *,
    hidden_size: int = 64,
    in_key: NestedKey,
    out_key: NestedKey,
    memory_key: NestedKey | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Make a network without memory, which sees the current step alone.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: width of the hidden layer.
        in_key: key of the input.
        out_key: key of the output.
        memory_key: ignored, since there is no memory.
        device: device of the parameters.

    Returns:
        The module; it needs neither state nor reset flags.

    Raises:
        ValueError: `hidden_size` is not positive.

    Examples:
        >>> from torchrl_shm.modules import make_mlp
        >>> make_mlp(5, 3, in_key="observation", out_key="features").out_keys
        ['features']
    """
    check_count("hidden_size", hidden_size)
    network = MLP(
        input_size,
        output_size,
        num_cells=[hidden_size],
        activation_class=torch.nn.Tanh,
        activate_last_layer=True,
        device=device,
    )
    return TensorDictModule(network, [in_key], [out_key])
