"""Importing the package is quick and needs no more than what is used of it."""

import functools
import subprocess
import sys

import pytest

WATCHED = {
    "gymnasium",
    "hydra",
    "hydra_zen",
    "matplotlib",
    "numba",
    "popgym",
    "tensordict",
    "torch",
    "torchrl",
    "triton",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def loaded(statement: str) -> set[str]:
    """Watched packages that a fresh interpreter has loaded after a statement."""
    names = run(f"{statement}\nimport sys\nprint(*sys.modules)").split()
    return WATCHED & {name.partition(".")[0] for name in names}


def test_package_loads_nothing() -> None:
    assert loaded("import torchrl_shm") == set()


def test_version_loads_nothing() -> None:
    assert loaded("import torchrl_shm; assert torchrl_shm.__version__") == set()


@pytest.mark.parametrize(
    "statement", ["import torchrl_shm.ops", "from torchrl_shm import shm_scan"]
)
def test_ops_load_torch_alone(statement: str) -> None:
    assert loaded(statement) - loaded("import torch") == set()


@pytest.mark.parametrize("room", ["modules", "envs"])
def test_room_loads_no_more_than_torchrl(room: str) -> None:
    hosts = loaded("import torchrl.modules, torchrl.envs, torchrl.objectives")
    assert loaded(f"import torchrl_shm.{room}") - hosts == set()


def test_ops_run_where_torchrl_is_not_installed() -> None:
    run("""
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in ("torchrl", "tensordict"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

sys.meta_path.insert(0, Block())

import torch
import torchrl_shm
from torchrl_shm.ops import shm_scan, shm_step

x = torch.randn(5, 2, 7, 4, requires_grad=True)
y, memory = shm_scan(*x)
y.sum().backward()
assert y.shape == (2, 7, 4) and memory.shape == (2, 4, 4)
assert x.grad.isfinite().all() and x.grad.any()

y, memory = torchrl_shm.shm_step(*x[:, :, 0])
assert y.shape == (2, 4) and memory.shape == (2, 4, 4)

try:
    torchrl_shm.SHM
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the block let torchrl through")
""")
