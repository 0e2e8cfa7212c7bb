"""Importing the package is quick and needs no more than what is used of it."""

import functools
import subprocess
import sys

import pytest

WATCHED = {
    "gymnasium", "hydra", "hydra_zen", "matplotlib", "numba", "popgym", "safetensors", "tensordict",
    "torch", "torchrl", "triton",
}  # fmt: skip
# in this order, in one interpreter: what each loads beyond those before it, if anything
STEPS = {
    "import torchrl_shm": set(),
    "assert torchrl_shm.__version__": set(),
    "import torch": ...,
    "import torchrl_shm.ops": set(),
    "from torchrl_shm import shm_scan": set(),
    "import torchrl.modules, torchrl.envs, torchrl.objectives, torchrl.collectors": ...,
    "import torchrl_shm.modules": set(),
    "import torchrl_shm.envs": set(),
    "import torchrl_shm.networks": set(),
    "import torchrl_shm.training": set(),
    # pictures are drawn at the end of a run
    "import torchrl_shm.configs": {"hydra", "hydra_zen"},
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def loaded() -> dict[str, set[str]]:
    """Watched packages that each step has loaded."""
    show = "print(*{name.partition('.')[0] for name in sys.modules})"
    lines = run("\n".join(["import sys", *(f"{step}\n{show}" for step in STEPS)])).splitlines()
    found: dict[str, set[str]] = {}
    before: set[str] = set()
    for step, line in zip(STEPS, lines, strict=True):
        now = WATCHED & set(line.split())
        found[step], before = now - before, now
    return found


@pytest.mark.parametrize("step", [step for step, expected in STEPS.items() if expected != ...])
def test_nothing_else_is_loaded(step: str) -> None:
    assert loaded()[step] == STEPS[step]


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
