"""What the page on GPUs says of sizes and commands is what the code and the raw data say."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

from tests.docs.test_code_blocks import ROOT
from torchrl_shm.ops.shm.tiles import MAX_SIZE

PAGE = " ".join((ROOT / "docs/gpu.md").read_text().split())


def test_sizes() -> None:
    assert f"take `H` up to {MAX_SIZE}," in PAGE
    rows = json.loads((ROOT / "docs/results/scan/cpu.json").read_text())["rows"]
    (measured,) = (x for x in rows if (x["shape"], x["name"]) == ("8,1024,64", "numba"))
    assert f"take [{measured['train_ms']:.0f} ms on two cores]" in PAGE
    times = (64 * 1024 * 128**2) // (8 * 1024 * 64**2)
    assert f"there is {times} times as much to do" in PAGE


def test_shares_of_the_limit() -> None:
    table = (ROOT / "docs/results/scan/gpu_model.md").read_text()
    (smallest,) = re.findall(r"^\| forward, exact \| 16 \| 4 rows .* (\d+)% ", table, re.M)
    assert f"at `H = 16` and few sequences the same model gives {smallest} %" in PAGE


def test_commands_exist() -> None:
    modules = re.findall(r"python -m ([\w.]+)", PAGE)
    assert len(modules) == 3
    assert all(map(find_spec, modules))
    marked = [x for x in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.gpu" in x.read_text()]
    # kernels, every memory, environments, a replayed graph, a stopped run
    folders = {x.parent.name for x in marked}
    assert folders >= {"shm", "modules", "envs", "training", "recipes"}
