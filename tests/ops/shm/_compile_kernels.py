"""Compile the kernels ahead of time and print, a line of JSON each, what the compiler made.

python -m tests.ops.shm._compile_kernels 90 default         without clamp and the fast gate
python -m tests.ops.shm._compile_kernels 90 fast            with the fast gate, without clamp
python -m tests.ops.shm._compile_kernels 90 options 64 128  with both, of two widths
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchrl_shm.ops.shm import tiles, triton_kernels
from torchrl_shm.ops.shm.backend import STORE

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def variants(group: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, width and constants of the kernels of a group."""
    plain = group != "options"
    common = {"GATE": "fast" if group in ("fast", "options") else "exact"}
    stream = {"RESETS": True, "STAGES": tiles.STAGES}
    for width, lines in tiles.LINES.items():
        shape = {**common, "H": width, "WIDTH": width}
        for rows in {lines, tiles.forward_lines(1, width)}:
            forward = {**shape, "ROWS": rows}
            yield "scan_forward_kernel", width, {
                **forward, **stream, "CLAMP": not plain, "SAVE": True, "STORE": STORE,
            }  # fmt: skip
            yield "segment_kernel", width, {**forward, **stream, "ADJOINT": not plain}
            yield "step_kernel", width, {**forward, "CLAMP": not plain}
        yield "scan_backward_kernel", width, {
            **shape, **stream, "COLUMNS": lines, "CHUNK": tiles.CHUNK[width], "STORE": STORE,
            "CLAMP": not plain,
        }  # fmt: skip
        yield "combine_kernel", width, {
            **stream, "SIZE": width * width, "BLOCK": 128, "REVERSE": not plain,
        }  # fmt: skip


def compile_kernel(name: str, constants: dict[str, Any], capability: int) -> bytes:
    """The machine code of one kernel."""
    kernel = getattr(triton_kernels, name)
    signature: dict[str, str] = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in ("is_init_ptr", "has_reset_ptr"):
            signature[argument] = "*u8"
        elif argument.endswith("_ptr"):
            signature[argument] = "*fp32"
        else:
            signature[argument] = "fp32" if argument == "clamp" else "i32"
    names = list(signature)
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr")}
    values = {(names.index(key),): value for key, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    target = GPUTarget("cuda", capability, 32)
    warps = 1 if name == "combine_kernel" else tiles.WARPS
    return triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]


def describe(cubin: bytes) -> dict[str, int]:
    """Registers, spills and what the inner loops are made of."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    loop, inner = _loops(code)
    return {
        "registers": numbers["REG"],
        "spill_bytes": numbers["STACK"],
        "async_loads": len(re.findall(r"\bLDGSTS", code)),
        # of one pass: a step, or in the backward kernel a chunk of steps, whose inner loop replays
        # one step
        **{f"loop_{key}": value for key, value in _count(loop).items()},
        **{f"inner_{key}": value for key, value in _count(inner).items()},
    }


def _loops(code: str) -> tuple[list[str], list[str]]:
    """Instructions of the longest loop and of the longest one in it; a loop is a jump backwards."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[range] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
            jump = re.search(r"\bBRA\b.*\((\.L_x_\d+)\)", instruction[1])
            if jump and jump[1] in labels:
                loops.append(range(labels[jump[1]], len(instructions)))
    # every kernel ends with a jump to itself, so there is at least one
    outer = max(loops, key=len)
    nested = [x for x in loops if x != outer and x.start in outer and x[-1] in outer]
    inner = max(nested, key=len, default=range(0))
    return instructions[outer.start : outer.stop], instructions[inner.start : inner.stop]


def _count(instructions: list[str]) -> dict[str, int]:
    patterns = {"instructions": "", "special": "MUFU", "exchange": "SHFL|LDS|STS|LDG|STG|LDL|STL"}
    return {
        key: sum(bool(re.search(rf"\b({pattern})\b", x)) for x in instructions)
        for key, pattern in patterns.items()
    }


def _run(tool: str, *arguments: str) -> str:
    command = [_TOOLS / tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(capability: int, group: str, *widths: int) -> None:
    """Compile and print."""
    wanted = [x for x in variants(group) if not widths or x[1] in widths]
    cubins = (compile_kernel(kernel, constants, capability) for kernel, _, constants in wanted)
    # the tools look at one kernel while the next is compiled
    with ThreadPoolExecutor(2) as pool:
        for (kernel, width, constants), found in zip(
            wanted, pool.map(describe, cubins), strict=True
        ):
            keys = [key for key in ("ROWS", "COLUMNS", "CHUNK", "GATE") if key in constants]
            tile = {key.lower(): constants[key] for key in keys}
            print(json.dumps({"kernel": kernel, "width": width, **tile, **found}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
