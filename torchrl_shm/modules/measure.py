"""How large a memory is: parameters, floats of state, and arithmetic per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.modules.utils import get_primers_from_module

# neither matrix products nor element-wise: about one operation per element of the input
_REDUCTIONS = {"sum", "mean", "amax", "cumsum", "cumprod", "_softmax", "native_layer_norm", "norm"}


@dataclass(frozen=True)
class MemorySize:
    """The result of `measure_memory`.

    Attributes:
        parameters: number of trained floats.
        state: number of floats of one agent's state.
        flops: floating-point operations of one step of one agent. A multiplication and an addition
            are two; a transcendental function is one.
    """

    parameters: int
    state: int
    flops: int


def measure_memory(module: nn.Module, *, input_size: int, in_key: str) -> MemorySize:
    """Measure a memory module of this library or of TorchRL.

    Args:
        module: the module, in step mode.
        input_size: number of input features.
        in_key: key of the input.

    Returns:
        Its sizes. Operations are counted while one step runs.

    Examples:
        >>> from torchrl_shm import SHMModule
        >>> from torchrl_shm.modules import measure_memory
        >>> module = SHMModule(5, 3, memory_size=8, in_key="x", out_key="y")
        >>> measure_memory(module, input_size=5, in_key="x").state
        64
    """
    data = TensorDict({in_key: torch.randn(1, input_size)}, [1])
    data["is_init"] = torch.zeros(1, 1, dtype=torch.bool)
    state = 0
    for key, spec in primed_specs(module).items():
        data[key] = spec.expand(1, *spec.shape).zero()
        state += spec.shape.numel() if spec.dtype.is_floating_point else 0
    parameters = sum(p.numel() for p in module.parameters())
    # random generators are left as they were
    with torch.no_grad(), torch.random.fork_rng([]), _FlopCounter() as counter:
        module(data)
    return MemorySize(parameters, state, counter.flops)


def primed_specs(module: nn.Module) -> dict[Any, Any]:
    """Specs of the entries that the primers of a module fill, by key."""
    primers: Any = get_primers_from_module(module, warn=False)
    found = [] if primers is None else primers if hasattr(primers, "__iter__") else [primers]
    return {key: spec for primer in found for key, spec in primer.primers.items(True, True)}


class _FlopCounter(TorchDispatchMode):
    """Adds up what each operation costs; torch's own counter counts matrix products only."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif torch.Tag.pointwise in func.tags and isinstance(out, Tensor):
            # a complex product is six real operations
            cost = 6 if out.is_complex() else int(out.is_floating_point())
            self.flops += cost * out.numel()
        elif packet in (torch.ops.aten.mv, torch.ops.aten.dot):
            self.flops += 2 * args[0].numel()
        elif packet is torch.ops.aten.mkldnn_rnn_layer:
            # on CPUs an LSTM is one operation, whose weights are the second and third argument
            self.flops += 2 * (args[1].numel() + args[2].numel())
        elif packet.__name__ in _REDUCTIONS:
            self.flops += args[0].numel()
        return out
