"""A check that a memory is reset, carried and replayed correctly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase

from torchrl_shm.modules._checker import Checker, MemoryCheckError

__all__ = ["MemoryCheckError", "MemoryReport", "check_memory"]


@dataclass(frozen=True)
class MemoryReport:
    """The result of `check_memory`.

    Attributes:
        promises: names of the promises that held, in the order in which they were checked.
        max_error: largest difference between a step and its place in a sequence.
    """

    promises: tuple[str, ...]
    max_error: float

    def __str__(self) -> str:
        """One line per promise."""
        lines = [f"ok  {promise}" for promise in self.promises]
        return "\n".join([*lines, f"largest step-sequence difference: {self.max_error:.1e}"])


def check_memory(
    module: TensorDictModuleBase,
    *,
    input_size: int | None = None,
    batch_size: int = 3,
    num_steps: int = 12,
    seed: int = 0,
) -> MemoryReport:
    """Test that a recurrent TensorDict module keeps its promises.

    Works with any module that has the contract of `torchrl.modules.GRUModule`.
    Random inputs with resets in mid-sequence run through step mode and recurrent mode:

    - `calls_repeat`: recurrent mode gives the same twice on the same data, so that every random
      choice that acted is recorded and replayed;
    - `resets_drop_values`: nothing from before a reset reaches after it, NaN and infinity
      included, even if the state handed over at the reset is stale;
    - `resets_stop_gradients`: no gradient of an output flows to an input before a reset;
    - `past_is_remembered`: the first input of an episode changes later outputs;
    - `steps_equal_sequence`: recurrent mode, run on what step mode recorded (resets, stored
      states, choices such as `theta_index`), gives the outputs of step mode;
    - `next_drops_values`: `unroll` gives, of the observations that came next, none that knows of
      what was before a reset;
    - `next_is_exact`: it gives what a sequence that ends with that observation gives, after
      truncations and after the last step, too, with the choices that act there;
    - `state_is_carried`: a sequence that starts in mid-episode goes on from the state it is given.

    With `state="zero"` a `MemoryModule` starts empty by design: `state_is_carried` is left out.
    The parameters are not changed, and torch's random generator is left as it was.

    Args:
        module: the module; its input has one feature dimension and is its first `in_key`.
        input_size: number of input features; by default the `input_size` that the module or one
            of its submodules names.
        batch_size: number of sequences.
        num_steps: length of the sequences, at least 6.
        seed: seed of the inputs and of the module's own draws.

    Returns:
        The promises that were checked, and the largest difference seen.

    Raises:
        MemoryCheckError: a promise is broken; the message says which, where and by how much.
        TypeError: the module has no `make_tensordict_primer`, so it is not a memory.
        ValueError: `input_size` is neither given nor found, or `num_steps` is too small.

    Examples:
        >>> from torchrl_shm import SHMModule, check_memory
        >>> module = SHMModule(5, 3, in_key="observation", out_key="features")
        >>> check_memory(module).promises[0]
        'calls_repeat'
    """
    if num_steps < 6:
        raise ValueError(f"num_steps={num_steps} must be at least 6 to hold resets")
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        checker = Checker(module, input_size, batch_size, num_steps, seed)
        return MemoryReport(checker.run(), checker.max_error)
