"""What every test gets: one thread, its own seed, and memory that shows when it was not written."""

import contextlib
import functools
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_start_method, set_start_method
from unittest.mock import patch

# without a GPU triton's kernels run in its interpreter; it decides when it is imported, which torch
# does, so torch cannot be asked
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch import Tensor

# sums come out in the same order on every machine, and workers do not fight for cores; before
# TorchRL is imported, which goes back to the number that it finds whenever it ends workers
torch.set_num_threads(1)

# before anything is patched: it registers itself for torch.empty_like as it finds it; tests of the
# operators run without it, on a GPU machine that has no more than torch, triton and pytest
with contextlib.suppress(ModuleNotFoundError):
    import tensordict  # noqa: F401
MEMBERS: dict[str, object] = {}
with contextlib.suppress(ModuleNotFoundError):
    from torchrl_shm.configs.groups import MEMBERS


def pytest_collection_finish() -> None:
    # a million objects of packages and tests stay to the end; collections need not visit them
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    """Forget the names for the command line that a test adds, or a page or docstring that runs."""
    with patch.dict(MEMBERS):
        yield


@pytest.fixture
def forked_workers() -> Iterator[None]:
    """Workers of collectors are copies of this process; others cost seconds of imports."""
    before = get_start_method(allow_none=True)
    set_start_method("fork", force=True)
    with warnings.catch_warnings():
        # not safe where there are threads; torch and numba are told to start none
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    set_start_method(before, force=True)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch leaves unwritten with NaN, so that reading it before writing shows."""
    monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", _poisoned(Tensor.new_empty))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(allocate)
    def wrapper(*args: object, **kwargs: object) -> Tensor:
        tensor = allocate(*args, **kwargs)
        # a compiled graph holds the package's own calls, not the way they were reached
        if torch.compiler.is_compiling():
            return tensor
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "torchrl_shm":
            with torch.no_grad():
                _poison_(tensor)
        return tensor

    return wrapper


def _poison_(tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)
