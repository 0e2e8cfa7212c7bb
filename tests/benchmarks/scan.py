"""Compare every way to run the scan: correctness first, then time, memory and ratios.

python -m tests.benchmarks.scan                          CPU, two threads
python -m tests.benchmarks.scan --device cuda
python -m tests.benchmarks.scan --shapes 16,512,32 --only loop,chunked,numba --json out.json

Needs torch only; numba, triton and torchrl add columns where they are installed. Ratios are to the
authors' loop (their module's time loop, written from the equations, with its way of indexing, which
makes the backward pass quadratic in T).
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks._measure import (
    milliseconds,
    number,
    peak_megabytes,
    table,
    wait_until_idle,
    write_numbers,
)
from torchrl_shm.ops import shm_scan, shm_step

Scan = Callable[..., tuple[Tensor, Tensor]]
DEFAULT = {
    "cpu": ["64,75,24", "16,512,32", "8,1024,64"],
    "cuda": ["64,75,24", "64,1024,64", "64,1024,128", "512,1024,64", "1,4096,64"],
}


def loop(theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor):
    """As the authors release it: everything for all steps, then a loop that indexes."""
    calibration = 1 + torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2))
    update = v.unsqueeze(-1) * k.unsqueeze(-2)
    states: list[Tensor] = []
    for t in range(theta.shape[1]):
        memory = memory * calibration[:, t] + update[:, t]
        states.append(memory)
    return torch.matmul(torch.stack(states, 1), q.unsqueeze(-1)).squeeze(-1), memory


def loop_unbind(theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor):
    """The same loop over `unbind`, whose backward is linear in T."""
    calibration = 1 + torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2))
    update = v.unsqueeze(-1) * k.unsqueeze(-2)
    states: list[Tensor] = []
    for c, u in zip(calibration.unbind(1), update.unbind(1), strict=True):
        memory = memory * c + u
        states.append(memory)
    return torch.matmul(torch.stack(states, 1), q.unsqueeze(-1)).squeeze(-1), memory


def associative(theta: Tensor, vc: Tensor, v: Tensor, k: Tensor, q: Tensor, memory: Tensor):
    """torch's associative scan over (calibration, update) pairs."""
    from torch._higher_order_ops import associative_scan

    calibration = 1 + torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2))
    update = v.unsqueeze(-1) * k.unsqueeze(-2)
    decay, states = associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]),
        (calibration, update),
        dim=1,
        combine_mode="generic",
    )
    states = states + decay * memory.unsqueeze(1)
    return torch.matmul(states, q.unsqueeze(-1)).squeeze(-1), states[:, -1]


def backend(name: str) -> Scan:
    """Ours by name."""
    return lambda *inputs: shm_scan(*inputs, backend=name)  # pyright: ignore[reportArgumentType]


def columns(device: str) -> dict[str, Scan]:
    """What can run here."""
    scans: dict[str, Scan] = {"loop": loop, "unbind": loop_unbind, "associative": associative}
    probe = torch.zeros(1, 1, 1, device=device)
    for name in ("reference", "chunked", "numba", "triton"):
        try:
            backend(name)(*[probe] * 5)
        except RuntimeError as error:
            print(f"without {name}: {error}")
        else:
            scans[name] = backend(name)
    if "triton" in scans:
        scans["triton fast_gate"] = lambda *x: shm_scan(*x, backend="triton", fast_gate=True)
        scans["triton segments=1"] = lambda *x: shm_scan(*x, backend="triton", segments=1)
    return scans


def make(batch: int, steps: int, size: int, device: str) -> list[Tensor]:
    """Inputs with gates as a fresh module has them."""
    generator = torch.Generator().manual_seed(0)
    scales = (0.3, 0.3, 1.0, 1.0, 1.0)
    inputs = [s * torch.randn(batch, steps, size, generator=generator) for s in scales]
    inputs.append(torch.randn(batch, size, size, generator=generator))
    return [x.to(device).requires_grad_() for x in inputs]


def train(scan: Scan, inputs: list[Tensor]) -> list[Tensor]:
    """Forward and backward."""
    y, memory = scan(*inputs)
    return [y, memory, *torch.autograd.grad([y.sum() + memory.sum()], inputs)]


def check(scans: dict[str, Scan], device: str) -> None:
    """Refuse to time what is wrong."""
    inputs = make(2, 37, 12, device)
    exact = train(backend("reference"), [x.detach().double().requires_grad_() for x in inputs])
    for name, scan in scans.items():
        bound = 1e-2 if name == "triton fast_gate" else 5e-5
        for actual, expected in zip(train(scan, inputs), exact, strict=True):
            error = float((actual - expected).detach().norm() / expected.detach().norm())
            if not error <= bound:
                raise SystemExit(f"{name} is wrong: relative error {error:.1e}, bound {bound:.0e}")
    print(f"correct: {', '.join(scans)}")


def limits(batch: int, steps: int, size: int) -> tuple[float, float]:
    """Milliseconds that forward and backward take at least on this GPU, by its arithmetic.

    Forward: one special function per element and step, 16 per clock and multiprocessor. Backward:
    13 float32 instructions, 128 per clock and multiprocessor.
    """
    properties = torch.cuda.get_device_properties(0)
    clocks = properties.multi_processor_count * torch.cuda.clock_rate() * 1e6
    elements = batch * steps * size * size
    return elements / (16 * clocks) * 1e3, elements * 13 / (128 * clocks) * 1e3


def gru(batch: int, steps: int, size: int, device: str) -> Callable[[], object] | None:
    """TorchRL's GRU with as many floats of state, where it is installed and not enormous."""
    if size * size > 1024:
        return None
    try:
        from tensordict import TensorDict
        from torchrl.modules import GRUModule
    except ImportError:
        return None
    module = GRUModule(size, size * size, in_key="x", out_key="y", default_recurrent_mode=True)
    module = module.to(device)
    data = TensorDict(
        {
            "x": torch.randn(batch, steps, size, device=device),
            "recurrent_state": torch.zeros(batch, steps, 1, size * size, device=device),
            "is_init": torch.zeros(batch, steps, 1, dtype=torch.bool, device=device),
        },
        [batch, steps],
        device=device,
    )

    def run() -> None:
        module(data.clone())["y"].sum().backward()
        module.zero_grad()

    return run


def measure_shape(scans: dict[str, Scan], shape: str, device: str) -> list[dict[str, object]]:
    """Time and memory of every column at one shape."""
    batch, steps, size = (int(x) for x in shape.split(","))
    inputs = make(batch, steps, size, device)
    detached = [x.detach() for x in inputs]
    rows: list[dict[str, object]] = []
    for name, scan in scans.items():

        def both(scan: Scan = scan) -> object:
            return train(scan, inputs)

        def forward(scan: Scan = scan) -> object:
            return scan(*detached)

        row: dict[str, object] = {"shape": shape, "name": name}
        row["train_ms"] = milliseconds(both, device)
        row["forward_ms"] = milliseconds(forward, device, 1.0)
        if device == "cuda":
            row["peak_mb"] = peak_megabytes(both, device)
        else:
            row["peak_mb"] = peak_of_a_fresh_process(name, shape)
        rows.append(row)
        print(f"  {name}: {number(row['train_ms'])} ms", flush=True)
    if (run := gru(batch, steps, size, device)) is not None:
        rows.append({"shape": shape, "name": "GRUModule", "train_ms": milliseconds(run, device)})
    base = rows[0]["train_ms"]
    for row in rows:
        row["ratio"] = base / row["train_ms"]  # pyright: ignore[reportOperatorIssue]
        if device == "cuda" and "forward_ms" in row:
            ahead, back = limits(batch, steps, size)
            row["forward_share"] = ahead / row["forward_ms"]  # pyright: ignore
            row["backward_share"] = back / (row["train_ms"] - row["forward_ms"])  # pyright: ignore
    return rows


def peak_of_a_fresh_process(name: str, shape: str) -> float:
    """Peak memory on CPU; in this process, memory freed by other columns would be used again."""
    command = [sys.executable, "-m", "tests.benchmarks.scan", "--peak", name, "--shapes", shape]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def print_peak(name: str, shape: str) -> None:
    """Measure one column and print nothing else last."""
    torch.set_num_threads(1)
    scan = columns("cpu")[name]
    small = make(1, 9, 8, "cpu")
    train(scan, small)  # loads, compiles
    batch, steps, size = (int(x) for x in shape.split(","))
    inputs = make(batch, steps, size, "cpu")
    print(peak_megabytes(lambda: train(scan, inputs), "cpu"))


def measure_step(device: str) -> dict[str, object]:
    """One step of 64 agents with H = 24 against the module's plain operations."""
    theta, vc, v, k, q, _ = (x.detach()[:, 0] for x in make(64, 1, 24, device))
    memory = torch.randn(64, 24, 24, device=device)

    def plain() -> object:
        calibration = 1 + torch.tanh(torch.einsum("bi,bj->bij", theta, vc))
        new = memory * calibration + torch.einsum("bi,bj->bij", v, k)
        return torch.einsum("bij,bj->bi", new, q), new

    def ours() -> object:
        return shm_step(theta, vc, v, k, q, memory)

    plain_us, ours_us = (1e3 * milliseconds(run, device, 0.5) for run in (plain, ours))
    return {"step": "64,24", "plain_us": plain_us, "ours_us": ours_us, "ratio": plain_us / ours_us}


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="*", help="B,T,H ...")
    parser.add_argument("--only", help="comma-separated columns; the first is the base of ratios")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument("--peak", metavar="NAME", help="print the peak memory of one column only")
    parser.add_argument("--json", type=Path, help="write the numbers, and the table beside them")
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak, arguments.shapes[0])
        return
    device: str = arguments.device
    torch.set_num_threads(arguments.threads)
    scans = columns(device)
    if arguments.only:
        scans = {name: scans[name] for name in arguments.only.split(",")}
    check(scans, device)
    used = wait_until_idle(arguments.wait)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {arguments.threads} threads, others used {used:.0%}")

    rows: list[dict[str, object]] = []
    for shape in arguments.shapes or DEFAULT[device]:
        print(f"[B, T, H] = [{shape}]", flush=True)
        rows += measure_shape(scans, shape, device)
    keys = ["shape", "name", "train_ms", "forward_ms", "ratio", "peak_mb"]
    if device == "cuda":
        keys += ["forward_share", "backward_share"]
    step = measure_step(device)
    result = {"device": name, "threads": arguments.threads, "others": used, "rows": rows}
    text = report({**result, "step": step}, keys)
    print(text)
    write_numbers(arguments.json, {**result, "step": step}, text)


def report(result: dict[str, Any], keys: list[str]) -> str:
    """The tables, as Markdown."""
    cells = [[_cell(row.get(key, "")) for key in keys] for row in result["rows"]]
    step = result["step"]
    return f"{table(keys, cells)}\n\n{table(list(step), [[_cell(x) for x in step.values()]])}"


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
