"""Stable Hadamard Memory: the cell, on plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.modules._features import FeatureMap, QKNorm, column_weights, input_norm
from torchrl_shm.ops import Backend, shm_scan, shm_step
from torchrl_shm.ops.shm.checks import check_clamp

Calibration = Literal["random", "fixed", "neural", "none", "constant", "noise"]
"""How the calibration C of the memory is computed; see `SHM`."""

# standard deviation of the logarithm of the product of C over `span` steps, as theta starts
_LOG_SPREAD = 0.3
# how wide v_c starts around its bias where rows forget, as a part of the released start: it keeps
# its sign, so the logarithm of C has a mean below 0 in every row
_NARROW = 0.3
# the row that fades last does so within this many spans
_SLOWEST = 10.0

# parameter names of the authors' three released copies -> ours
_REFERENCE_NAMES = {"theta_matrix": "theta", "vc_net.weight": "vc.weight"}


class SHM(nn.Module):
    """A matrix memory that is calibrated and updated element by element.

    With `x̂ = LayerNorm(x)`, keys and queries `k, q = relu(W x̂)` divided by their sum, or by their
    length, and a memory that starts at zero:

        C_t = 1 + tanh(theta_t ⊗ vc_t)          calibration, in (0, 2)
        M_t = M_{t-1} ⊙ C_t + eta_t v_t ⊗ k_t   write
        y_t = W_o (M_t q_t + W_s x̂ + b_s) + b_o  read; W_s is the shortcut

    Source: Le et al., Stable Hadamard Memory (ICLR 2025), and the released code, repository
    `thaihungle/SHM`: `shm.py` (no shortcut) and `pomdp-baselines/torchkit/shm.py` (shortcut,
    clamp 100).

    Args:
        input_size: number of input features, `D`; at least 3 with `norm`.
        output_size: number of output features.
        memory_size: side `H` of the memory, `H * H` floats of state per agent.
        num_theta: rows `L` of the table from which `theta_t` is drawn.
        calibration: the ablation of the paper (section 4.4) as one option.
            `"random"`: a learned table, a random row each step (the proposed method);
            `"fixed"`: one learned row (what two of the three released copies compute);
            `"neural"`: `theta_t` is a linear function of the input;
            `"none"`: C = 1, which is linear attention;
            `"constant"`: a learned C that does not depend on the input;
            `"noise"`: a random row of a table that is not learned; independent of the input.
        shortcut: add a linear map of the input to what is read.
        norm: begin with the LayerNorm. Of one raw feature it leaves nothing and of two a sign, so
            embed few features first, or leave it out with `False`: then `x̂ = x`.
        span: number of steps over which the memory shall keep what it was told from the start.
            Theta then starts so small that the product of all C over that many steps stays near 1:
            its logarithm has a standard deviation of 0.3. `None` is the released start, where that
            is 0.66 after 100 steps and 1.5 after 500; no start is wider than that. For "random",
            "fixed" and "noise"; "constant", whose C is the same at every step, starts as narrow
            over all steps together. "neural" and "none" have no table.
        forget: start with rows that fade, rather than all that keep: what is written into row `i`
            is down to 1/e after `tau_i` steps, from 1 in the first row to ten times `span` in the
            last, in equal ratios. `v_c` has a bias for that, which the released code has not. What
            the last few steps tell, such as a velocity, is hard to read from a memory that only
            adds, since all that came before is read with it. With "random" and "fixed", and a
            `span`; not inside an ensemble that draws its parameters anew, which mixes the rows.
        feature_map: the function that makes keys and queries of features, see
            `torchrl_shm.modules.FeatureMap`; "identity" needs `qk_norm="l2"`, for a sum of numbers
            with signs may be zero.
        qk_norm: what keys and queries are divided by, see `torchrl_shm.modules.QKNorm`.
        revive: let keys and queries learn that the ReLU has silenced in all columns. They are zero
            either way, but in the released code (`False`) so is their gradient, and what they
            stand for, a step of the episode for example, may never be written or read again. With
            the other feature maps none is silent, and this changes nothing.
        clamp: bound on `|M|` after every write, or `None`. The authors' POMDP code uses 100.
        backend: implementation of the scan, see `torchrl_shm.ops.shm_scan`.
        fast_gate: allow the approximate tanh of the hardware, see `torchrl_shm.ops.shm_scan`.
        device: device of the parameters.
        dtype: dtype of the parameters. The memory is float64 for float64, else float32.

    Raises:
        ValueError: a size is not positive, an option is unknown, `input_size` is below 3 with
            `norm`, `forget` comes without a `span` or with another calibration, or "identity"
            without "l2".

    Examples:
        >>> import torch
        >>> from torchrl_shm import SHM
        >>> cell = SHM(input_size=5, output_size=3, memory_size=8)
        >>> y, memory, theta_index = cell(torch.randn(2, 10, 5))
        >>> y.shape, memory.shape, theta_index.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 8, 8]), torch.Size([2, 10]))
    """

    choice_name = "theta_index"

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        memory_size: int = 24,
        num_theta: int = 128,
        calibration: Calibration = "random",
        shortcut: bool = True,
        norm: bool = True,
        span: int | None = None,
        forget: bool = False,
        feature_map: FeatureMap = "relu",
        qk_norm: QKNorm = "sum",
        revive: bool = True,
        clamp: float | None = None,
        backend: Backend = "auto",
        fast_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "input_size": input_size,
            "output_size": output_size,
            "memory_size": memory_size,
            "num_theta": num_theta,
        }
        for name, size in sizes.items():
            check_count(name, size)
        if span is not None:
            check_count("span", span)
        check_option("calibration", calibration, Calibration)
        if forget and (span is None or calibration not in ("random", "fixed")):
            raise ValueError(
                f"forget=True with span={span} and calibration={calibration!r}: it needs a span, "
                f"of steps, and the calibration 'random' or 'fixed'; or leave it out, forget=False"
            )
        check_option("feature_map", feature_map, FeatureMap)
        check_option("qk_norm", qk_norm, QKNorm)
        if feature_map == "identity" and qk_norm == "sum":
            raise ValueError(
                "feature_map='identity' with qk_norm='sum': a sum of numbers with signs may be "
                "zero; pass qk_norm='l2', or feature_map='relu'"
            )
        check_option("backend", backend, Backend)
        check_clamp(clamp)
        self.input_size = input_size
        self.output_size = output_size
        self.memory_size = memory_size
        self.span = span
        self.forget = forget
        self.feature_map: FeatureMap = feature_map
        self.qk_norm: QKNorm = qk_norm
        self.revive = revive
        self.calibration: Calibration = calibration
        self.clamp = clamp
        self.backend: Backend = backend
        self.fast_gate = fast_gate

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = memory_size
        self.norm = input_norm(input_size, ", or pass norm=False", **factory) if norm else None
        self.key = nn.Linear(input_size, width, bias=False, **factory)
        self.query = nn.Linear(input_size, width, bias=False, **factory)
        self.value = nn.Linear(input_size, width, bias=False, **factory)
        self.eta = nn.Linear(input_size, 1, bias=False, **factory)
        self.out = nn.Linear(width, output_size, **factory)
        self.shortcut = nn.Linear(input_size, width, **factory) if shortcut else None

        # the two factors of the calibration: theta on the rows, vc on the columns
        table = (num_theta if calibration in ("random", "noise") else 1, width)
        self.theta: nn.Parameter | nn.Linear | Tensor | None = None
        self.vc: nn.Parameter | nn.Linear | Tensor | None = None
        if calibration in ("random", "fixed", "constant"):
            self.theta = nn.Parameter(torch.empty(table, **factory))
        elif calibration == "neural":
            self.theta = nn.Linear(input_size, width, bias=False, **factory)
        elif calibration == "noise":
            del self.theta, self.vc
            self.register_buffer("theta", torch.empty(table, **factory))
            self.register_buffer("vc", torch.empty(table, **factory))
        if calibration in ("random", "fixed", "neural"):
            self.vc = nn.Linear(input_size, width, bias=forget, **factory)
        elif calibration == "constant":
            self.vc = nn.Parameter(torch.empty(1, width, **factory))
        self.reset_parameters()

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of one agent's memory, `(H, H)`."""
        return (self.memory_size, self.memory_size)

    @property
    def num_choices(self) -> int | None:
        """Number of rows from which each step draws one, or `None` where nothing is drawn."""
        if self.calibration not in ("random", "noise"):
            return None
        assert isinstance(self.theta, Tensor)
        return self.theta.shape[0]

    def reset_parameters(self) -> None:
        """Initialize as the released code does, theta as `span` and `forget` ask for.

        The released code has torch's defaults, and theta is Xavier-uniform.
        """
        for module in self.children():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
        if isinstance(self.theta, Tensor):
            nn.init.xavier_uniform_(self.theta)
            if self.span is not None:
                # log C is about theta * vc; vc, a linear map of a normalized input, starts with a
                # variance of 1/3. Steps are independent where theta is drawn or vc depends on them
                constant = self.calibration == "constant"
                spread = _LOG_SPREAD * 3**0.5 / (self.span if constant else self.span**0.5)
                released = (2 / sum(self.theta.shape)) ** 0.5
                bound = 3**0.5 * min(spread, released)
                nn.init.uniform_(self.theta, -bound, bound)
        if self.forget:
            self._start_to_forget()
        if isinstance(self.vc, Tensor):
            # spread like the vc_t of a normalized input at initialization
            nn.init.uniform_(self.vc, -1.0, 1.0)

    @torch.no_grad()
    def _start_to_forget(self) -> None:
        """Move theta and v_c to where C is about exp(-1 / tau), one tau per row."""
        assert isinstance(self.theta, Tensor)
        assert isinstance(self.vc, nn.Linear)
        assert self.span is not None
        # in a low precision the slowest rows would not fade at all
        exact: dict[str, Any] = {"dtype": torch.float64, "device": self.theta.device}
        tau = (_SLOWEST * self.span) ** torch.linspace(0, 1, self.memory_size, **exact)
        # of the logarithm of the product of C over tau steps, in draws that differ
        spread = _LOG_SPREAD * (3 / tau) ** 0.5
        drawn = spread * nn.init.uniform_(self.theta, -1.0, 1.0).double()
        # C = 1 + tanh(theta * vc) at vc = -1
        self.theta.copy_(torch.atanh(-torch.expm1(-1 / tau)) + drawn - drawn.mean(0))
        self.vc.weight.mul_(_NARROW)
        self.vc.bias.fill_(-1.0)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        is_init: Tensor | None = None,
        theta_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run over a whole sequence.

        Args:
            x: inputs of shape `[B, T, D]`.
            memory: initial memory of shape `[B, H, H]`; `None` starts empty.
            is_init: bool of shape `[B, T]`; where true, the memory that enters the step is zero.
            theta_index: int64 rows of theta of shape `[B, T]`; `None` draws them from torch's
                default generator. Only the calibrations "random" and "noise" use it.

        Returns:
            Outputs `[B, T, output_size]`, the final memory `[B, H, H]`, and the rows that acted
            `[B, T]` (`None` where nothing is drawn).

        Raises:
            ValueError: a shape does not fit, or `theta_index` is not int64.
            TypeError: a dtype is not supported.
            RuntimeError: the backend cannot run here, or tensors are on different devices.
        """
        theta_index = self._draw(x, theta_index)
        shortcut, gates = self._project(x, theta_index)
        y, memory = shm_scan(
            *gates,
            memory,
            is_init,
            clamp=self.clamp,
            backend=self.backend,
            fast_gate=self.fast_gate,
        )
        return self._read_out(y, shortcut), memory, theta_index

    def step(
        self, x: Tensor, memory: Tensor | None = None, theta_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run one step.

        Args:
            x: inputs of shape `[..., D]`.
            memory: memory of shape `[..., H, H]`; `None` is empty.
            theta_index: int64 rows of theta of shape `[...]`; `None` draws them.

        Returns:
            Outputs `[..., output_size]`, the new memory `[..., H, H]`, and the rows that acted
            `[...]` (`None` where nothing is drawn).

        Raises:
            ValueError: a shape does not fit, or `theta_index` is not int64.
            TypeError: a dtype is not supported.
            RuntimeError: tensors are on different devices.
        """
        theta_index = self._draw(x, theta_index)
        shortcut, gates = self._project(x, theta_index)
        y, memory = shm_step(*gates, memory, clamp=self.clamp, fast_gate=self.fast_gate)
        return self._read_out(y, shortcut), memory, theta_index

    def calibrate(self, x: Tensor, theta_index: Tensor | None = None) -> Tensor:
        """Compute the calibration matrices C of given steps, to look at; training builds none.

        Args:
            x: inputs of shape `[..., D]`.
            theta_index: int64 rows of theta of shape `[...]`, as `forward` and `step` return them.
                `None` draws new ones, so that C is one that might have acted.

        Returns:
            C of shape `[..., H, H]`, in (0, 2): above 1 where a step strengthens what is in the
            memory, below 1 where that fades; 1 with the calibration "none".

        Raises:
            ValueError: a shape does not fit, or `theta_index` is not int64.

        Examples:
            >>> import torch
            >>> from torchrl_shm import SHM
            >>> cell, x = SHM(5, 3, memory_size=8), torch.randn(2, 10, 5)
            >>> y, memory, theta_index = cell(x)
            >>> cell.calibrate(x, theta_index).shape
            torch.Size([2, 10, 8, 8])
        """
        theta, vc = self._project(x, self._draw(x, theta_index))[1][:2]
        return 1 + torch.tanh(theta.unsqueeze(-1) * vc.unsqueeze(-2))

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        clamp: float | None = None,
        calibration: Literal["random", "fixed"] = "random",
        backend: Backend = "auto",
    ) -> SHM:
        """Build a cell from the parameters of the authors' released module.

        Sizes, shortcut, dtype and device follow from the tensors.

        Args:
            state_dict: parameters under the authors' names (`theta_matrix`, `vc_net.weight`,
                `key.weight`, ...).
            clamp: 100 for modules of `pomdp-baselines/torchkit/shm.py`, which bounds its memory.
            calibration: `"fixed"` for modules of `shm.py` and of the POPGym code, which always
                read row 0 of their table; only that row is then kept.
            backend: implementation of the scan.

        Returns:
            The cell; equal to the original in outputs and gradients for equal rows of theta. It
            does not `revive`.

        Raises:
            KeyError: names are missing or unknown.
            ValueError: `calibration` is neither "random" nor "fixed", or the module has fewer than
                three input features, of which its LayerNorm leaves a sign or nothing.

        Examples:
            >>> from torchrl_shm import SHM
            >>> released = SHM(5, 3, shortcut=False).state_dict()
            >>> released["theta_matrix"] = released.pop("theta")
            >>> released["vc_net.weight"] = released.pop("vc.weight")
            >>> SHM.from_reference(released).memory_size
            24
        """
        if calibration not in ("random", "fixed"):
            raise ValueError(
                f"calibration={calibration!r} has no released parameters; use 'random' or 'fixed'"
            )
        ours = {_REFERENCE_NAMES.get(name, name): value for name, value in state_dict.items()}
        required = {"theta", "vc.weight", "key.weight", "query.weight", "value.weight"}
        required |= {"eta.weight", "norm.weight", "norm.bias", "out.weight", "out.bias"}
        optional = {"shortcut.weight", "shortcut.bias"}
        missing = required - ours.keys()
        unknown = ours.keys() - required - optional
        if missing or unknown:
            raise KeyError(
                f"not a released SHM state_dict: missing {sorted(missing)}, unknown "
                f"{sorted(unknown)}; strip any prefix from the names first"
            )
        memory_size, input_size = ours["key.weight"].shape
        if calibration == "fixed":
            ours["theta"] = ours["theta"][:1]
        cell = cls(
            input_size,
            ours["out.weight"].shape[0],
            memory_size=memory_size,
            num_theta=ours["theta"].shape[0],
            calibration=calibration,
            shortcut="shortcut.weight" in ours,
            feature_map="relu",
            qk_norm="sum",
            revive=False,
            clamp=clamp,
            backend=backend,
            device=ours["theta"].device,
            dtype=ours["theta"].dtype,
        )
        cell.load_state_dict(ours)
        return cell

    def extra_repr(self) -> str:
        """Options that no submodule shows."""
        return (
            f"memory_size={self.memory_size}, num_theta={self.num_choices}, "
            f"calibration={self.calibration!r}, span={self.span}, forget={self.forget}, "
            f"feature_map={self.feature_map!r}, qk_norm={self.qk_norm!r}, revive={self.revive}, "
            f"clamp={self.clamp}, backend={self.backend!r}"
        )

    def _draw(self, x: Tensor, theta_index: Tensor | None) -> Tensor | None:
        if self.num_choices is None:
            return None
        if theta_index is None:
            # torch's default generator: torch.compile, vmap and CUDA graphs need that
            return torch.randint(self.num_choices, x.shape[:-1], device=x.device)
        if theta_index.dtype != torch.int64 or theta_index.shape != x.shape[:-1]:
            raise ValueError(
                f"theta_index is {theta_index.dtype} of shape {list(theta_index.shape)}, expected "
                f"torch.int64 of shape {list(x.shape[:-1])}"
            )
        return theta_index

    def _project(
        self, x: Tensor, theta_index: Tensor | None
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """The shortcut, if there is one, and theta, vc, v, k, q."""
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"x has {x.shape[-1]} features, this cell reads input_size={self.input_size}"
            )
        # without a norm too, what follows is computed in the dtype of the parameters under autocast
        normed = x.to(self.key.weight.dtype) if self.norm is None else self.norm(x)
        # one product for all linear maps: they are small, and one by one take several times as long
        maps = [self.key, self.query, self.value, self.eta]
        maps += [x for x in (self.theta, self.vc, self.shortcut) if isinstance(x, nn.Linear)]
        sizes = [2 * self.memory_size, *(layer.out_features for layer in maps[2:])]
        projected = F.linear(normed, torch.cat([layer.weight for layer in maps]))
        # which autocast computes in a lower precision than the norm and theta
        features, v, eta, *rest = projected.to(normed.dtype).split(sizes, -1)
        features = features.unflatten(-1, (2, -1))
        k, q = column_weights(features, self.feature_map, self.qk_norm, self.revive).unbind(-2)
        v = torch.sigmoid(eta) * v
        theta, vc = (
            rest.pop(0) if isinstance(source, nn.Linear) else _factor(source, v, theta_index)
            for source in (self.theta, self.vc)
        )
        if self.forget:
            assert isinstance(self.vc, nn.Linear)
            vc = vc + self.vc.bias
        shortcut = None if self.shortcut is None else rest.pop() + self.shortcut.bias
        return shortcut, (theta, vc, v, k, q)

    def _read_out(self, y: Tensor, shortcut: Tensor | None) -> Tensor:
        return self.out(y if shortcut is None else y + shortcut)


def _factor(source: Tensor | None, v: Tensor, theta_index: Tensor | None) -> Tensor:
    """One of the two factors of a calibration that does not depend on the input."""
    if source is None:
        # tanh(0) = 0, hence C = 1
        return torch.zeros_like(v)
    if source.shape[0] == 1 and theta_index is None:
        return source.squeeze(0).expand_as(v).to(v.dtype)
    assert theta_index is not None
    return F.embedding(theta_index, source).to(v.dtype)
