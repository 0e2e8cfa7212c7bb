"""Count, without a GPU, the memory that the CUDA scan and the authors' loop take.

python -m tests.benchmarks.gpu_memory

Both run forward and backward on torch's meta device, where tensors have sizes and no contents, so
any machine can count at the sizes of a GPU. The result is the largest sum of all tensors that are
alive at once, without the inputs. The CUDA kernels allocate nothing and are not launched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.benchmarks._measure import table
from tests.benchmarks.scan import loop, train
from torchrl_shm.ops.shm import triton_scan
from torchrl_shm.ops.shm.backend import STORE, Options, Vectors

SHAPES = [(64, 1024, 128), (512, 1024, 64)]
# where vectors take more memory than states
SHORT = (64, 75, 24)


class _Counter(TorchDispatchMode):
    """Adds up the storages that operations allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        inputs = {_key(x) for x in tree_leaves(args) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = _key(tensor)
            # views share the storage of their base
            if key in inputs or key in self._known:
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


class _NoKernels:
    """Replaces the module of the kernels."""

    def __getattr__(self, name: str) -> Any:
        return _NoKernel()


class _NoKernel:
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def ours(inputs: list[Tensor]) -> object:
    """What the operator calls of the backend, forward and backward."""
    *vectors, memory = (x.detach() for x in inputs)
    vectors, options = Vectors(*vectors), Options()
    checkpoints = memory.new_empty(-(-vectors.v.shape[1] // STORE), *memory.shape)
    with patch.object(triton_scan, "_kernels", _NoKernels):
        y, final = triton_scan.forward(vectors, memory, None, options, checkpoints)
        grads = triton_scan.backward(
            torch.empty_like(y), torch.empty_like(final), vectors, None, options, checkpoints
        )
    return y, final, grads


def count_bytes(run: Callable[[list[Tensor]], object], shape: tuple[int, int, int]) -> int:
    """Largest number of bytes during a run, without the inputs.

    Args:
        run: called with the five vectors `[B, T, H]` and the memory `[B, H, H]`.
        shape: B, T and H.

    Returns:
        The bytes.
    """
    batch, _, size = shape
    inputs = [torch.empty(shape, device="meta").requires_grad_() for _ in range(5)]
    inputs.append(torch.empty(batch, size, size, device="meta").requires_grad_())
    with _Counter() as counter:
        run(inputs)
    return counter.peak


def compare(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Bytes of the authors' loop and of the CUDA scan."""
    return count_bytes(lambda inputs: train(loop, inputs), shape), count_bytes(ours, shape)


def main() -> None:
    """Count and print."""
    rows: list[list[str]] = []
    for shape in (*SHAPES, SHORT):
        theirs, mine = compare(shape)
        numbers = [f"{theirs / 1e9:.1f}", f"{mine / 1e9:.2f}", f"1/{theirs / mine:.1f}"]
        rows.append([",".join(map(str, shape)), *numbers])
    print(table(["shape", "loop_gb", "triton_gb", "ratio"], rows))


if __name__ == "__main__":
    main()
