"""The memories to choose from.

Adding one takes one line in `MEMORIES`; its options and their defaults come from its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hydra_zen import builds

from torchrl_shm.configs.presets import Presets, factory_config
from torchrl_shm.modules import (
    DNC,
    FFM,
    GPT2,
    GRU,
    LRU,
    LSTM,
    MLSTM,
    NTM,
    S6,
    SHM,
    Elman,
    FastWeights,
    FrameStack,
    LinearAttention,
    MemoryCell,
    make_memory,
    make_mlp,
)

# arguments that the recipe passes itself; they stay out of the config
_RUNTIME = (
    "input_size", "output_size", "in_key", "in_keys", "memory_key", "out_key", "out_keys",
    "choice_key", "is_init_key", "burn_in", "default_recurrent_mode", "device", "dtype",
)  # fmt: skip


def memory_config(cell: Callable[..., MemoryCell], **options: Any) -> Any:
    """Make the config of a memory from its cell.

    Args:
        cell: class of the cell; its keyword arguments become the options of the config, with their
            types and defaults.
        **options: values that differ from the defaults.

    Returns:
        A config that builds `torchrl_shm.modules.make_memory(cell, ...)`.

    Examples:
        >>> from hydra_zen import instantiate
        >>> from torchrl_shm.configs import memory_config
        >>> from torchrl_shm.modules import LRU
        >>> make = instantiate(memory_config(LRU, memory_size=8))
        >>> make(input_size=5, output_size=3, in_key="x", out_key="y").cell.memory_shape
        (8, 2)
    """
    signature = builds(
        cell, populate_full_signature=True, zen_partial=True, zen_exclude=_RUNTIME, **options
    )
    return factory_config(make_memory, cell=cell, zen_exclude=_RUNTIME, builds_bases=(signature,))


MEMORIES = Presets(
    {
        "mlp": partial(factory_config, make_mlp, zen_exclude=_RUNTIME),
        "frame_stack": partial(memory_config, FrameStack),
        "elman": partial(memory_config, Elman),
        "gru": partial(memory_config, GRU),
        "lstm": partial(memory_config, LSTM),
        "linear_attention": partial(memory_config, LinearAttention),
        "fast_weights": partial(memory_config, FastWeights),
        "fast_weights_additive": partial(memory_config, FastWeights, rule="additive"),
        "ffm": partial(memory_config, FFM),
        "mlstm": partial(memory_config, MLSTM),
        "s6": partial(memory_config, S6),
        "gpt2": partial(memory_config, GPT2),
        "dnc": partial(memory_config, DNC),
        "ntm": partial(memory_config, NTM),
        "lru": partial(memory_config, LRU),
        # the proposed memory, its ablations, and the sizes of the authors' two code bases
        "shm": partial(memory_config, SHM),
        "shm_fixed": partial(memory_config, SHM, calibration="fixed"),
        "shm_neural": partial(memory_config, SHM, calibration="neural"),
        "shm_none": partial(memory_config, SHM, calibration="none"),
        "shm_constant": partial(memory_config, SHM, calibration="constant"),
        "shm_noise": partial(memory_config, SHM, calibration="noise"),
        "shm_popgym": partial(memory_config, SHM, memory_size=128),
        "shm_pomdp": partial(memory_config, SHM, memory_size=24, clamp=100.0),
    }
)
"""Configs by name."""
