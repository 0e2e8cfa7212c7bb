"""Stable Hadamard Memory as a TensorDict module."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from tensordict import NestedKey

from torchrl_shm.modules._features import FeatureMap, QKNorm
from torchrl_shm.modules._gru_arguments import refuse_gru_arguments
from torchrl_shm.modules.lean import State
from torchrl_shm.modules.memory_module import MemoryModule
from torchrl_shm.modules.shm import SHM, Calibration
from torchrl_shm.ops import Backend


class SHMModule(MemoryModule):
    """Stable Hadamard Memory as a TensorDict module, in the place of `GRUModule`.

    One step at a time in collectors, a whole sequence at once in losses and under
    `torchrl.modules.set_recurrent_mode(True)`. The rows of theta that acted are written to
    `theta_index` and used again in recurrent mode, so that log-probabilities of a first PPO epoch
    equal those of collection. Keys and `state` are those of every `MemoryModule`. Arguments that
    only `GRUModule` and `LSTMModule` have are refused with what to write instead.

    Args:
        input_size: number of input features.
        output_size: number of output features.
        memory_size: side `H` of the memory.
        num_theta: rows of the calibration table.
        calibration: see `SHM`.
        shortcut: see `SHM`.
        norm: see `SHM`; `False` for one or two raw features.
        span: see `SHM`.
        forget: see `SHM`.
        feature_map: see `SHM`.
        qk_norm: see `SHM`.
        revive: see `SHM`.
        clamp: see `SHM`.
        backend: see `torchrl_shm.ops.shm_scan`.
        fast_gate: see `SHM`.
        device: device of the parameters.
        dtype: dtype of the parameters.
        cell: a ready-made `SHM`; exclusive with the arguments above.
        in_key: key of the input. Exclusive with `in_keys`.
        in_keys: `[input, memory]`.
        memory_key: key of the memory, where `in_keys` does not name it.
        out_key: key of the output; the memory is then written to `("next", memory)`.
            Exclusive with `out_keys`.
        out_keys: `[output, ("next", memory)]`.
        theta_index_key: key of the rows that acted. Default: `"theta_index"` beside the memory, or
            the memory key with `_theta_index` appended where the memory is not called `"memory"`.
        is_init_key: key of the reset flags.
        state: where a sequence takes its first memory from, see `MemoryModule`.
        burn_in: steps at the start of each sequence without gradient, see `MemoryModule`.
        default_recurrent_mode: mode outside of `set_recurrent_mode`.

    Raises:
        ValueError: a size, an option or a combination of keys does not fit.
        TypeError: `cell` is not a memory cell, or an argument is one of `GRUModule` alone.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import set_recurrent_mode
        >>> from torchrl_shm import SHMModule
        >>> module = SHMModule(5, 3, memory_size=8, in_key="observation", out_key="features")
        >>> is_init = torch.zeros(2, 10, 1, dtype=torch.bool)
        >>> is_init[:, 0] = True
        >>> data = TensorDict({"observation": torch.randn(2, 10, 5), "is_init": is_init}, [2, 10])
        >>> with set_recurrent_mode(True):
        ...     data = module(data)
        >>> data["features"].shape
        torch.Size([2, 10, 3])
    """

    @refuse_gru_arguments
    def __init__(
        self,
        input_size: int | None = None,
        output_size: int | None = None,
        *,
        memory_size: int = 24,
        num_theta: int = 128,
        calibration: Calibration = "random",
        shortcut: bool = True,
        norm: bool = True,
        span: int | None = None,
        forget: bool = False,
        feature_map: FeatureMap = "relu",
        qk_norm: QKNorm = "sum",
        revive: bool = True,
        clamp: float | None = None,
        backend: Backend = "auto",
        fast_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cell: SHM | None = None,
        in_key: NestedKey | None = None,
        in_keys: list[NestedKey] | None = None,
        memory_key: NestedKey = "memory",
        out_key: NestedKey | None = None,
        out_keys: list[NestedKey] | None = None,
        theta_index_key: NestedKey | None = None,
        is_init_key: NestedKey = "is_init",
        state: State = "lean",
        burn_in: int = 0,
        default_recurrent_mode: bool | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "memory_size": memory_size,
            "num_theta": num_theta,
            "calibration": calibration,
            "shortcut": shortcut,
            "norm": norm,
            "span": span,
            "forget": forget,
            "feature_map": feature_map,
            "qk_norm": qk_norm,
            "revive": revive,
            "clamp": clamp,
            "backend": backend,
            "fast_gate": fast_gate,
            "device": device,
            "dtype": dtype,
        }
        if cell is None:
            if input_size is None or output_size is None:
                raise ValueError("pass input_size and output_size, or cell=SHM(...)")
            cell = SHM(input_size, output_size, **options)
        else:
            options |= {"input_size": input_size, "output_size": output_size}
            parameters = signature(SHMModule).parameters
            given = [name for name, x in options.items() if x != parameters[name].default]
            if given:
                raise ValueError(f"cell= is ready-made, so {given} would be ignored; drop them")
        super().__init__(
            cell,
            in_key=in_key,
            in_keys=in_keys,
            memory_key=memory_key,
            out_key=out_key,
            out_keys=out_keys,
            choice_key=theta_index_key,
            is_init_key=is_init_key,
            state=state,
            burn_in=burn_in,
            default_recurrent_mode=default_recurrent_mode,
        )
