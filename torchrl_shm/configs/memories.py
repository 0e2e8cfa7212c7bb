"""The memories to choose from, and what makes them comparable in size.

Adding one is one line in `MEMORIES`; its options and their defaults come from its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra_zen import builds, make_custom_builds_fn

from torchrl_shm.modules import (
    DNC,
    FFM,
    GPT2,
    LRU,
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
    make_rnn,
)

# what the recipe passes itself; it stays out of the config
_RUNTIME = (
    "input_size", "output_size", "in_key", "in_keys", "memory_key", "out_key", "out_keys",
    "choice_key", "is_init_key", "burn_in", "default_recurrent_mode", "device", "dtype",
)  # fmt: skip

# factories: the recipe calls them with what only it knows
_builds = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)


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
    return _builds(make_memory, cell=cell, zen_exclude=_RUNTIME, builds_bases=(signature,))


MEMORIES: dict[str, Any] = {
    "mlp": _builds(make_mlp, zen_exclude=_RUNTIME),
    "frame_stack": memory_config(FrameStack),
    "elman": memory_config(Elman),
    "gru": _builds(make_rnn, "gru", zen_exclude=_RUNTIME),
    "lstm": _builds(make_rnn, "lstm", zen_exclude=_RUNTIME),
    "linear_attention": memory_config(LinearAttention),
    "fast_weights": memory_config(FastWeights),
    "fast_weights_additive": memory_config(FastWeights, rule="additive"),
    "ffm": memory_config(FFM),
    "mlstm": memory_config(MLSTM),
    "s6": memory_config(S6),
    "gpt2": memory_config(GPT2),
    "dnc": memory_config(DNC),
    "ntm": memory_config(NTM),
    "lru": memory_config(LRU),
    # the proposed memory, its ablations, and the sizes of the authors' two code bases
    "shm": memory_config(SHM),
    "shm_fixed": memory_config(SHM, calibration="fixed"),
    "shm_neural": memory_config(SHM, calibration="neural"),
    "shm_none": memory_config(SHM, calibration="none"),
    "shm_constant": memory_config(SHM, calibration="constant"),
    "shm_noise": memory_config(SHM, calibration="noise"),
    "shm_popgym": memory_config(SHM, memory_size=128),
    "shm_pomdp": memory_config(SHM, memory_size=24, clamp=100.0),
}
