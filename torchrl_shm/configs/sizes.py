"""Options that make the memories comparable, at 64 features in and out.

`torchrl-shm memories` prints the sizes, and a test keeps each within a tenth of the goal.
"""

from __future__ import annotations

from typing import Any

GOALS = {"params": 24_960, "state": 576}
"""Parameters of a `gru` of 64 units; floats of a memory of `shm`, 24 x 24."""

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    # a gru is that size as it is
    "params": {
        "mlp": {"hidden_size": 193},
        "frame_stack": {"hidden_size": 78},
        "elman": {"hidden_size": 106},
        "lstm": {"hidden_size": 48},
        "linear_attention": {"memory_size": 77},
        "fast_weights": {"memory_size": 77},
        "fast_weights_additive": {"memory_size": 77},
        "ffm": {"memory_size": 26},
        "mlstm": {"memory_size": 16},
        "s6": {"inner_size": 81},
        "gpt2": {"width": 40},
        "dnc": {"hidden_size": 33},
        "ntm": {"hidden_size": 38},
        "lru": {"memory_size": 47},
        "shm": {"memory_size": 48},
        "shm_fixed": {"memory_size": 64},
        "shm_neural": {"memory_size": 55},
        "shm_none": {"memory_size": 77},
        "shm_constant": {"memory_size": 76},
        "shm_noise": {"memory_size": 77},
    },
    # without a memory there is no state; shm and its ablations are that size as they are
    "state": {
        "frame_stack": {"num_frames": 10},
        "elman": {"hidden_size": 576},
        "gru": {"hidden_size": 576},
        "lstm": {"hidden_size": 288},
        "linear_attention": {"memory_size": 23},
        "fast_weights": {"memory_size": 24},
        "fast_weights_additive": {"memory_size": 24},
        "ffm": {"memory_size": 72},
        "mlstm": {"memory_size": 11},
        "s6": {"inner_size": 30},
        "gpt2": {"width": 32, "window": 10},
        "dnc": {"num_cells": 12},
        "ntm": {"num_cells": 24},
        "lru": {"memory_size": 288},
    },
}
"""Options by measure and memory; `size=params` and `size=state` on the command line.

They hold for `network.embedding_size=64`. Memories without an entry keep their size: those of
`add_memory`, and `shm_popgym` and `shm_pomdp`, which have the sizes of the authors' code.
"""
