"""TorchRL's own memories, and the network without one, behind the signature of `make_memory`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import NestedKey, unravel_key
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import MLP, GRUModule, LSTMModule

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.modules.lean import suffixed

RNNKind = Literal["gru", "lstm"]
"""TorchRL's recurrent modules."""


def make_rnn(
    kind: RNNKind,
    input_size: int,
    output_size: int,
    *,
    hidden_size: int | None = None,
    num_layers: int = 1,
    in_key: NestedKey,
    out_key: NestedKey,
    memory_key: NestedKey = "recurrent_state",
    device: torch.device | str | None = None,
) -> GRUModule | LSTMModule | TensorDictSequential:
    """Make TorchRL's `GRUModule` or `LSTMModule`, whose output is its hidden state.

    Args:
        kind: `"gru"` or `"lstm"`.
        input_size: number of input features.
        output_size: number of output features.
        hidden_size: size of the hidden state, and of the cell state of an LSTM. Where it differs
            from `output_size`, a linear map follows. Default: `output_size`.
        num_layers: number of stacked layers.
        in_key: key of the input.
        out_key: key of the output.
        memory_key: key of the state; an LSTM has two, with `_h` (hidden) and `_c` (cell) appended.
        device: device of the parameters.

    Returns:
        The module, followed by the linear map if there is one; its state is kept per step.

    Raises:
        ValueError: `kind` is unknown, or `hidden_size` is not positive.

    Examples:
        >>> from torchrl_shm.modules import make_rnn
        >>> make_rnn("gru", 5, 3, in_key="observation", out_key="features").out_keys
        ['features', ('next', 'recurrent_state')]
    """
    check_option("kind", kind, RNNKind)
    width = output_size if hidden_size is None else hidden_size
    check_count("hidden_size", width)
    states = [memory_key] if kind == "gru" else [suffixed(memory_key, x) for x in ("_h", "_c")]
    fits = width == output_size
    hidden_key = out_key if fits else suffixed(out_key, "_hidden")
    make: Any = GRUModule if kind == "gru" else LSTMModule
    memory = make(
        input_size,
        width,
        num_layers,
        in_keys=[in_key, *states, "is_init"],
        out_keys=[hidden_key, *(unravel_key(("next", key)) for key in states)],
        device=device,
    )
    if fits:
        return memory
    linear = torch.nn.Linear(width, output_size, device=device)
    modules: list[Any] = [memory, TensorDictModule(linear, [hidden_key], [out_key])]
    return TensorDictSequential(*modules)


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
