"""Arguments of TorchRL's recurrent modules that `SHMModule` does not have, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

P = ParamSpec("P")

# what follows the two sizes of GRUModule comes first, in its order, since it may go by position
ADVICE = {
    "num_layers": "drop it: one layer; for more, chain modules with keys of their own",
    "bias": "drop it: which of the linear maps have one is fixed",
    "batch_first": "drop it: the batch always comes first",
    "dropout": "drop it: it acts between layers, and there is one",
    "bidirectional": "drop it: a memory sees the past alone",
    "python_based": "drop it, or write backend='reference' for a loop in Python",
    "recurrent_backend": "write backend, see torchrl_shm.ops.shm_scan",
    "recurrent_compute_dtype": "write dtype: the memory is float64 for float64, else float32",
    "recurrent_recompute": "drop it: the fast backends always recompute",
    "recurrent_matmul_precision": "drop it: the memory is never rounded below float32",
    "hidden_size": "write output_size for the output, memory_size for the side of the memory",
    "proj_size": "drop it: output_size does not depend on the size of the memory",
    "gru": "write cell=SHM(...)",
    "lstm": "write cell=SHM(...)",
}
"""What to write instead, by argument."""

# so that the message stays short; the others are named
_EXPLAINED = 3


def refuse_gru_arguments(
    init: Callable[Concatenate[Any, P], None],
) -> Callable[Concatenate[Any, P], None]:
    """Make a constructor refuse arguments of `GRUModule` and `LSTMModule` with advice.

    Args:
        init: an `__init__` that takes two sizes by position and all else by name.

    Returns:
        The same, with the same signature. Arguments that are unknown to both get Python's error.
    """

    @wraps(init)
    def checked(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        extra = len(args) - 2
        names = [*list(ADVICE)[: max(extra, 0)], *(name for name in kwargs if name in ADVICE)]
        if names:
            first = [f"{name} ({ADVICE[name]})" for name in names[:_EXPLAINED]]
            refused = ", ".join([*first, *names[_EXPLAINED:]])
            by_position = "two sizes by position, memory_size=... by name, and unlike GRUModule "
            takes = f"{type(self).__name__} takes {by_position if extra > 0 else ''}"
            raise TypeError(f"{takes}no {refused}")
        init(self, *args, **kwargs)

    return checked
