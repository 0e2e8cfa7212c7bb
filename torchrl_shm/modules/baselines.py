"""TorchRL's own memories, and the network without one, behind the signature of `make_memory`."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import MLP, GRUModule, LSTMModule

from torchrl_shm.modules.row_start import suffixed


def make_gru(
    input_size: int,
    output_size: int,
    *,
    hidden_size: int | None = None,
    num_layers: int = 1,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None = None,
) -> GRUModule | TensorDictSequential:
    """Make TorchRL's `GRUModule`, whose output is its hidden state.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: size of the hidden state. Where it differs from `output_size`, a linear map
            follows. Default: `output_size`.
        num_layers: number of stacked layers.
        in_key: key of the input.
        out_key: key of the output.
        device: device of the parameters.

    Returns:
        The module, followed by the linear map if there is one; its state is kept per step under
        `recurrent_state`.

    Examples:
        >>> from torchrl_shm.modules import make_gru
        >>> make_gru(5, 3, in_key="observation", out_key="features").out_keys
        ['features', ('next', 'recurrent_state')]
    """
    return _projected(
        GRUModule, input_size, output_size, hidden_size, num_layers, in_key, out_key, device
    )


def make_lstm(
    input_size: int,
    output_size: int,
    *,
    hidden_size: int | None = None,
    num_layers: int = 1,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None = None,
) -> LSTMModule | TensorDictSequential:
    """Make TorchRL's `LSTMModule`, whose output is its hidden state.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: size of the hidden state and of the cell state. Where it differs from
            `output_size`, a linear map follows. Default: `output_size`.
        num_layers: number of stacked layers.
        in_key: key of the input.
        out_key: key of the output.
        device: device of the parameters.

    Returns:
        The module, followed by the linear map if there is one; its states are kept per step under
        `recurrent_state_h` and `recurrent_state_c`.

    Examples:
        >>> from torchrl_shm.modules import make_lstm
        >>> make_lstm(5, 3, in_key="observation", out_key="features").out_keys[0]
        'features'
    """
    return _projected(
        LSTMModule, input_size, output_size, hidden_size, num_layers, in_key, out_key, device
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
    if hidden_size < 1:
        raise ValueError(f"hidden_size={hidden_size} must be at least 1")
    network = MLP(
        input_size,
        output_size,
        num_cells=[hidden_size],
        activation_class=torch.nn.Tanh,
        activate_last_layer=True,
        device=device,
    )
    return TensorDictModule(network, [in_key], [out_key])


def _projected(
    kind: Any,
    input_size: int,
    output_size: int,
    hidden_size: int | None,
    num_layers: int,
    in_key: NestedKey,
    out_key: NestedKey,
    device: torch.device | str | None,
) -> Any:
    """TorchRL's recurrent modules write their hidden state; a linear map makes it any size."""
    if hidden_size is None or hidden_size == output_size:
        return kind(
            input_size, output_size, num_layers, in_key=in_key, out_key=out_key, device=device
        )
    if hidden_size < 1:
        raise ValueError(f"hidden_size={hidden_size} must be at least 1")
    hidden_key = suffixed(out_key, "_hidden")
    memory = kind(
        input_size, hidden_size, num_layers, in_key=in_key, out_key=hidden_key, device=device
    )
    linear = torch.nn.Linear(hidden_size, output_size, device=device)
    modules: list[Any] = [memory, TensorDictModule(linear, [hidden_key], [out_key])]
    return TensorDictSequential(*modules)
