"""The scans in kernels of another package: on CPU with a stand-in, and with the kernels themselves.

Without a GPU the kernels run in triton's interpreter, if the package is installed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from torchrl_shm.ops import delta_scan, fla_scan, gated_scan

Inputs = dict[str, Tensor]
EXACT: Any = {"rtol": 1e-10, "atol": 1e-12}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {
    "additive": ("fla.ops.linear_attn", "fused_recurrent_linear_attn"),
    "delta": ("fla.ops.delta_rule", "fused_recurrent_delta_rule"),
}
SCANS: dict[str, Callable[..., Any]] = {"additive": gated_scan, "delta": delta_scan}
INPUTS = {"additive": ["q", "k", "v", "memory"], "delta": ["q", "k", "v", "memory", "beta"]}
both = pytest.mark.parametrize("rule", SCANS)
each = pytest.mark.parametrize(("rule", "name"), [(r, n) for r in INPUTS for n in INPUTS[r]])


def kernel(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor,
    output_final_state: bool,
    cu_seqlens: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """What the package says of its kernels: `[1, T, H, K]`, memories `[N, H, K, V]`, segments."""
    assert output_final_state
    assert not normalize
    assert len(q) == len(k) == len(v) == 1
    assert cu_seqlens.dtype == torch.int64
    assert cu_seqlens[[0, -1]].tolist() == [0, q.shape[1]]
    assert initial_state.shape == (len(cu_seqlens) - 1, q.shape[2], q.shape[3], v.shape[3])
    # the package copies what is not contiguous, and the copy takes no gradient
    assert initial_state.is_contiguous()
    assert initial_state.requires_grad or not q.requires_grad
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    readings: list[Tensor] = []
    final: list[Tensor] = []
    for state, (start, stop) in zip(initial_state, pairwise(cu_seqlens.tolist()), strict=True):
        assert start < stop
        for t in range(start, stop):
            written = v[0, t]
            if beta is not None:
                found = torch.einsum("hkv,hk->hv", state, k[0, t])
                written = beta[0, t, :, None] * (written - found)
            state = state + torch.einsum("hk,hv->hkv", k[0, t], written)
            readings.append(torch.einsum("hkv,hk->hv", state, scale * q[0, t]))
        final.append(state)
    return torch.stack(readings).unsqueeze(0), torch.stack(final)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla_scan, "find_spec", lambda name: name)
    monkeypatch.setattr(fla_scan, "refuse", lambda device, dtype: None)
    monkeypatch.setattr(fla_scan, "_import", lambda: (kernel, kernel))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, whose kernels run on the device that there is."""
    with warnings.catch_warnings():
        # what it says while it is imported is about itself, and about a missing GPU
        warnings.simplefilter("ignore")
        fla = pytest.importorskip("fla")
        for module, _ in KERNELS.values():
            importlib.import_module(module)
    if DEVICE == "cpu":
        monkeypatch.setattr(fla_scan, "refuse", lambda device, dtype: None)
        # the fastest configuration of a kernel cannot be searched without a GPU
        common = sys.modules["fla.ops.common.fused_recurrent"]
        for name in ("fused_recurrent_fwd_kernel", "fused_recurrent_bwd_kernel"):
            tuner = getattr(common, name).fn
            monkeypatch.setattr(tuner, "configs", tuner.configs[:1])
    return fla


def make(
    rule: str, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[Inputs, Tensor]:
    """Inputs `[B, T, K, V]` of a scan, and resets at about one step in five."""
    batch, steps, width, height = shape
    q, k = torch.randn(2, batch, steps, width).unbind(0)
    inputs = {"q": q, "k": F.normalize(k, dim=-1), "v": torch.randn(batch, steps, height)}
    inputs["memory"] = torch.randn(batch, height, width)
    if rule == "delta":
        inputs["beta"] = torch.rand(batch, steps)
    leaves = {name: x.to(DEVICE, dtype).requires_grad_() for name, x in inputs.items()}
    return leaves, (torch.rand(batch, steps) < 0.2).to(DEVICE)


def run(rule: str, inputs: Inputs, is_init: Tensor | None, backend: str) -> dict[str, Tensor]:
    """Readings, final memory and gradients, for the same loss at every call."""
    y, *_, memory = SCANS[rule](**inputs, is_init=is_init, backend=backend)
    generator = torch.Generator().manual_seed(1)
    loss: Any = 0
    for x in (y, memory):
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        loss = loss + (x * weights.to(x)).sum()
    wanted = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    return {"y": y, "final": memory, **dict(zip(wanted, grads, strict=True))}


@both
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 11, 4, 5), (1, 1, 1, 1), (2, 7, 3, 2), (0, 5, 3, 2), (2, 0, 3, 2)], ids=str
)
@pytest.mark.usefixtures("stand_in")
def test_against_torch(rule: str, shape: tuple[int, int, int, int], resets: bool) -> None:
    for _ in range(3):
        inputs, is_init = make(rule, shape)
        is_init = is_init if resets else None
        actual, expected = (run(rule, inputs, is_init, x) for x in ("fla", "torch"))
        assert_close(actual, expected, **EXACT)


@both
@pytest.mark.parametrize("first", [[0], [1], [5], [0, 1, 2], [4, 5], range(6)], ids=str)
@pytest.mark.usefixtures("stand_in")
def test_resets_at_the_edges_of_a_row(rule: str, first: list[int]) -> None:
    inputs, is_init = make(rule, (3, 6, 3, 2))
    is_init[:] = False
    is_init[1, list(first)] = True
    actual, expected = (run(rule, inputs, is_init, x) for x in ("fla", "torch"))
    assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.usefixtures("stand_in")
def test_stabilizer_without_gates(resets: bool) -> None:
    inputs, is_init = make("additive", (3, 7, 3, 2))
    stabilizer = torch.tensor([0.5, float("nan"), -float("inf")])
    stabilizer = stabilizer.to(DEVICE, torch.float64)
    is_init = is_init if resets else None
    actual, expected = (
        gated_scan(**inputs, stabilizer=stabilizer, is_init=is_init, backend=x)
        for x in ("fla", "torch")
    )
    assert_close(actual, expected, equal_nan=True, **EXACT)


@each
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("reset", [0, 4])
@pytest.mark.usefixtures("stand_in")
def test_nothing_passes_a_reset(rule: str, name: str, value: float, reset: int) -> None:
    """Neither into what comes after it, nor into another row, nor by way of gradients."""
    inputs, is_init = make(rule, (3, 9, 3, 2))
    is_init[:] = False
    is_init[1, reset] = True

    def after(inputs: Inputs) -> list[Tensor]:
        y, *_, memory = SCANS[rule](**inputs, is_init=is_init, backend="fla")
        loss = y[[0, 2]].square().sum() + y[1, reset:].square().sum() + memory.square().sum()
        grads = torch.autograd.grad(loss, list(inputs.values()))
        named = dict(zip(inputs, grads, strict=True)) | {"y": y}
        entered = named.pop("memory")
        # what entered row 1 has no gradient if it was dropped at once
        kept = entered if reset == 0 else entered[[0, 2]]
        return [memory, kept, *(x[r] for x in named.values() for r in (0, 2))] + [
            x[1, reset:] for x in named.values()
        ]

    expected = after(inputs)
    spoilt = {n: x.detach().clone().requires_grad_() for n, x in inputs.items()}
    with torch.no_grad():
        if name == "memory":
            spoilt[name][1] = value
        else:
            spoilt[name][1, :reset] = value
    actual = after(spoilt)
    assert all(x.isfinite().all() for x in actual)
    assert_close(actual, expected, **EXACT)


@each
@pytest.mark.usefixtures("stand_in")
def test_gradient_of_one_input_alone(rule: str, name: str) -> None:
    inputs, is_init = make(rule, (2, 7, 3, 2))
    alone = {n: x if n == name else x.detach() for n, x in inputs.items()}
    actual, expected = (run(rule, alone, is_init, x) for x in ("fla", "torch"))
    assert_close(actual, expected, **EXACT)


@both
@pytest.mark.usefixtures("stand_in")
def test_layouts_and_absent_memory(rule: str) -> None:
    inputs, is_init = make(rule, (2, 7, 3, 3))
    turned = {n: x.detach().transpose(0, 1).contiguous() for n, x in inputs.items()}
    turned = {n: x.transpose(0, 1).requires_grad_() for n, x in turned.items()}
    actual, expected = (run(rule, turned, is_init, x) for x in ("fla", "torch"))
    assert_close(actual, expected, **EXACT)
    del inputs["memory"]
    actual, expected = (run(rule, inputs, is_init, x) for x in ("fla", "torch"))
    assert_close(actual, expected, **EXACT)


@both
@pytest.mark.usefixtures("stand_in")
def test_results(rule: str) -> None:
    """Nothing is changed in place, no buffer is kept, low precision is widened."""
    inputs, is_init = make(rule, (2, 7, 3, 2), torch.bfloat16)
    before = {n: x.detach().clone() for n, x in inputs.items()}, is_init.clone()
    with torch.no_grad():
        y, *_, memory = SCANS[rule](**inputs, is_init=is_init, backend="fla")
    assert_close(({n: x.detach() for n, x in inputs.items()}, is_init), before, rtol=0, atol=0)
    assert (y.dtype, memory.dtype) == (torch.float32, torch.float32)
    assert memory.is_contiguous()
    assert memory.untyped_storage().nbytes() == memory.nbytes
    plain = {n: x.detach() for n, x in inputs.items()}
    assert not SCANS[rule](**plain, is_init=is_init, backend="fla")[0].requires_grad


@both
def test_names_of_the_package(package: Any, rule: str) -> None:
    module, name = KERNELS[rule]
    found = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    used = set(inspect.signature(kernel).parameters)
    missing = used - found.keys()
    assert missing == ({"beta"} if rule == "additive" else {"normalize"})
    kernels = fla_scan._import()
    assert [x.__name__ for x in kernels] == [name for _, name in KERNELS.values()]


@both
@pytest.mark.usefixtures("package")
def test_stand_in_is_what_the_package_means(rule: str) -> None:
    """Against the package's own loops, which are in float32."""
    module = importlib.import_module(f"{KERNELS[rule][0]}.naive")
    plain = {n: x.detach().cpu() for n, x in make(rule, (1, 12, 5, 6), torch.float32)[0].items()}
    state = plain.pop("memory").mT.unsqueeze(1).contiguous()
    heads = {n: x.unsqueeze(2) for n, x in plain.items()}
    wide = {n: x.double() for n, x in heads.items()} | {"initial_state": state.double()}
    actual = kernel(**wide, output_final_state=True, cu_seqlens=torch.tensor([0, 12]))
    if rule == "additive":
        expected = module.naive_recurrent_linear_attn(
            **heads, initial_state=state, output_final_state=True
        )
    else:
        heads = {n: x.transpose(1, 2) for n, x in heads.items()}
        y, memory = module.delta_rule_recurrence(**heads, initial_state=state)
        expected = y.transpose(1, 2), memory
    for x, e in zip(actual, expected, strict=True):
        assert error(e, x) <= 5e-6


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative root mean square."""
    return float((actual.double() - expected).detach().norm() / expected.detach().norm())


def check(rule: str, shape: tuple[int, int, int, int], resets: bool, grads: list[str]) -> None:
    """The kernels in float32 against the scan in float64, as every fast backend is tested."""
    inputs, is_init = make(rule, shape, torch.float32)
    inputs = {n: x.detach().requires_grad_(n in grads) for n, x in inputs.items()}
    wide = {n: x.detach().double().requires_grad_(n in grads) for n, x in inputs.items()}
    is_init = is_init if resets else None
    actual, expected = run(rule, inputs, is_init, "fla"), run(rule, wide, is_init, "torch")
    for name, x in actual.items():
        assert x.dtype == torch.float32
        assert error(x, expected[name]) <= (5e-6 if name in ("y", "final") else 5e-5), name


ALL = ["q", "k", "v", "beta", "memory"]


@both
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("grads", [ALL, ALL[:-1], ["memory"], ["v"]], ids=str)
@pytest.mark.usefixtures("package")
def test_kernels(rule: str, resets: bool, grads: list[str]) -> None:
    check(rule, (3, 14, 5, 6), resets, grads)


@both
@pytest.mark.usefixtures("package")
def test_kernels_over_several_tiles(rule: str) -> None:
    check(rule, (1, 5, 70, 67), True, ALL)


@both
@pytest.mark.usefixtures("package")
def test_kernels_let_nothing_pass_a_reset(rule: str) -> None:
    inputs, is_init = make(rule, (2, 8, 4, 3), torch.float32)
    is_init[:] = False
    is_init[0, 4] = is_init[1, 0] = True
    spoilt = {n: x.detach().clone() for n, x in inputs.items()}
    spoilt["v"][0, :4] = spoilt["memory"][1] = float("nan")
    spoilt = {n: x.requires_grad_() for n, x in spoilt.items()}

    def after(inputs: Inputs) -> list[Tensor]:
        y, *_, memory = SCANS[rule](**inputs, is_init=is_init, backend="fla")
        loss = y[0, 4:].square().sum() + y[1].square().sum() + memory.square().sum()
        grads = torch.autograd.grad(loss, [inputs[n] for n in "qkv"])
        return [memory, *(x[1] for x in (y, *grads)), *(x[0, 4:] for x in (y, *grads))]

    assert SCANS[rule](**spoilt, is_init=is_init, backend="fla")[0][0, :4].isnan().all()
    assert_close(after(spoilt), after(inputs), rtol=0, atol=0)


@pytest.mark.gpu
@both
@pytest.mark.parametrize(
    "shape", [(64, 75, 24, 24), (16, 1024, 32, 33), (4, 256, 128, 128)], ids=str
)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.usefixtures("package")
def test_real_sizes(rule: str, shape: tuple[int, int, int, int], resets: bool) -> None:
    check(rule, shape, resets, ALL)


@pytest.mark.gpu
@both
@pytest.mark.usefixtures("package")
def test_repeats_to_the_bit(rule: str) -> None:
    inputs, is_init = make(rule, (16, 200, 32, 33), torch.float32)
    first, second = (run(rule, inputs, is_init, "fla") for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


def refuse(rule: str, error: type[Exception], message: str, inputs: Inputs, **options: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SCANS[rule](**inputs, **{"backend": "fla"} | options)


class TestErrors:
    @both
    def test_unknown_name(self, rule: str) -> None:
        inputs, _ = make(rule, (2, 5, 3, 2))
        text = "backend='triton' is unknown; choose one of ('torch', 'fla')"
        refuse(rule, ValueError, text, inputs, backend="triton")

    @both
    def test_package_is_missing(self, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
        monkeypatch.setitem(sys.modules, "fla", None)
        inputs, _ = make(rule, (2, 5, 3, 2), torch.float32)
        text = (
            "backend='fla' needs the package flash-linear-attention, imported as fla; install it "
            "with `pip install 'torchrl_shm[fla]'`, or use backend='torch'"
        )
        refuse(rule, RuntimeError, text, inputs)

    def test_package_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fla.ops.delta_rule", None)
        fla_scan._import.cache_clear()
        reason = fla_scan.refuse(torch.device("cuda"), torch.float32)
        fla_scan._import.cache_clear()
        assert reason is not None
        assert re.fullmatch(
            r"cannot import the kernels of fla \(.*fla.*\); install it with "
            r"`pip install 'torchrl_shm\[fla\]'`, or use backend='torch'",
            reason,
        )

    @both
    def test_on_the_cpu(self, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
        monkeypatch.setattr(fla_scan, "find_spec", lambda name: name)
        inputs, _ = make(rule, (2, 5, 3, 2), torch.float32)
        inputs = {n: x.detach().cpu() for n, x in inputs.items()}
        text = "backend='fla' runs on CUDA, but the tensors are on cpu; use 'torch'"
        refuse(rule, RuntimeError, text, inputs)

    def test_double_precision(self) -> None:
        assert (
            fla_scan.refuse(torch.device("cuda"), torch.float64)
            == "computes in float32, but inputs are float64; use 'torch', or cast them"
        )

    @pytest.mark.usefixtures("stand_in")
    def test_gates(self) -> None:
        inputs, _ = make("additive", (2, 5, 3, 2))
        gate = torch.zeros(2, 5, dtype=torch.float64, device=DEVICE)
        text = "backend='fla' has no gates; leave out log_decay and log_input, or use 'torch'"
        refuse("additive", ValueError, text, inputs, log_decay=gate, log_input=gate)

    @both
    @pytest.mark.usefixtures("stand_in")
    def test_shapes_are_checked_first(self, rule: str) -> None:
        inputs, is_init = make(rule, (2, 5, 3, 2))
        text = "is_init has shape [2, 4], expected [B, T] = [2, 5]"
        refuse(rule, ValueError, text, inputs, is_init=is_init[:, :4])
