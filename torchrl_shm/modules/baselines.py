"""The memories that SHM is compared with, behind one signature; TorchRL's own where it has them."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torchrl.modules import MLP, GRUModule, LSTMModule


def make_gru(
    input_size: int,
    output_size: int,
    *,
    num_layers: int = 1,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None = None,
) -> GRUModule:
    """Make TorchRL's `GRUModule`, whose output is its hidden state.

    Args:
        input_size: number of input features.
        output_size: size of the hidden state.
        num_layers: number of stacked layers.
        in_key: key of the input.
        out_key: key of the output.
        device: device of the parameters.

    Returns:
        The module; its state is kept per step under `recurrent_state`.

    Examples:
        >>> from torchrl_shm.modules import make_gru
        >>> make_gru(5, 3, in_key="observation", out_key="features").out_keys
        ['features', ('next', 'recurrent_state')]
    """
    return GRUModule(
        input_size, output_size, num_layers, in_key=in_key, out_key=out_key, device=device
    )


def make_lstm(
    input_size: int,
    output_size: int,
    *,
    num_layers: int = 1,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None = None,
) -> LSTMModule:
    """Make TorchRL's `LSTMModule`, whose output is its hidden state.

    Args:
        input_size: number of input features.
        output_size: size of the hidden state and of the cell state.
        num_layers: number of stacked layers.
        in_key: key of the input.
        out_key: key of the output.
        device: device of the parameters.

    Returns:
        The module; its states are kept per step under `recurrent_state_h` and
        `recurrent_state_c`.

    Examples:
        >>> from torchrl_shm.modules import make_lstm
        >>> make_lstm(5, 3, in_key="observation", out_key="features").out_keys[0]
        'features'
    """
    return LSTMModule(
        input_size, output_size, num_layers, in_key=in_key, out_key=out_key, device=device
    )


def make_mlp(
    input_size: int,
    output_size: int,
    *,
    hidden_size: int = 64,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Make a network without memory: what an agent can do from the current step alone.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: width of the hidden layer.
        in_key: key of the input.
        out_key: key of the output.
        device: device of the parameters.

    Returns:
        The module; it needs neither state nor reset flags.

    Examples:
        >>> from torchrl_shm.modules import make_mlp
        >>> make_mlp(5, 3, in_key="observation", out_key="features").out_keys
        ['features']
    """
    network = MLP(
        input_size,
        output_size,
        num_cells=[hidden_size],
        activation_class=torch.nn.Tanh,
        activate_last_layer=True,
        device=device,
    )
    return TensorDictModule(network, [in_key], [out_key])
