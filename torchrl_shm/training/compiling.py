"""`torch.compile` for what a run computes over and over: the update and the policy's step."""

from __future__ import annotations

import inspect
import sys
import warnings
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_shm.checks import check_option

Compile = Literal["none", "update", "all"]
"""`"update"`: the loss and its backward pass. `"all"`: the policy's step in collection as well."""

_Module = TypeVar("_Module", bound=TensorDictModuleBase)


class Compiler:
    """Compiles the modules of a run, as `experiment.compile` says.

    What is compiled draws from torch's default generator in the order of the module itself, and
    gives the same numbers up to rounding. Its own numbers repeat bit for bit, in a resumed run too:
    every shape has a kernel of its own, and none is chosen by measuring.

    Each module becomes one graph, when it is first called; on CUDA the policy is replayed as a CUDA
    graph. One that cannot be compiled is run as it is, and a line on stderr says why.

    Args:
        mode: see `Compile`.
        device: that of the modules.

    Raises:
        ValueError: `mode` is unknown.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> from torchrl_shm.training import Compiler
        >>> policy = make_actor_critic(WindEnv(4), SHMModule).get_policy_operator()
        >>> Compiler("update").policy(policy) is policy, Compiler("all").policy(policy) is policy
        (True, False)
    """

    def __init__(self, mode: Compile = "none", device: torch.device | str = "cpu") -> None:
        check_option("experiment.compile", mode, Compile)
        self.mode: Compile = mode
        self.device = torch.device(device)
        if mode != "none" and self.device.type == "cpu" and not _finds_cpp_compiler():
            _say("no C++ compiler is found (g++, or what CXX names), so nothing is compiled")
            self.mode = "none"

    def update(self, loss: _Module) -> _Module | CompiledModule:
        """Compile a loss, forward and backward.

        Args:
            loss: a module that reads minibatches.

        Returns:
            The loss to be called. Parameters and everything else are still those of `loss`, which
            stays as it is.
        """
        if self.mode == "none":
            return loss
        return CompiledModule(loss, "the update", self._options())

    def policy(self, policy: _Module) -> _Module | CompiledModule:
        """Compile a policy that collects data.

        Args:
            policy: a module that reads one step.

        Returns:
            The policy for the collector, in worker processes too. It has the parameters of
            `policy`, which stays as it is.
        """
        if self.mode != "all":
            return policy
        graphs = {"triton.cudagraphs": True} if self.device.type == "cuda" else {}
        return CompiledModule(policy, "the policy", self._options() | graphs)

    def _options(self) -> dict[str, Any]:
        # inductor's own generator is another one than torch's. On CUDA it would choose among
        # kernels by timing them, and a resumed run could get others
        return {"fallback_random": True, "deterministic": self.device.type == "cuda"}


class CompiledModule(TensorDictModuleBase):
    """Runs a module as one compiled graph; made by `Compiler`.

    Args:
        module: the module.
        what: what to call it in messages.
        options: of `torch.compile`.
    """

    def __init__(self, module: TensorDictModuleBase, what: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.in_keys: Any = module.in_keys
        self.out_keys: Any = module.out_keys
        self._what = what
        self._options = options
        self._gave_up = False
        self._forget()

    def _forget(self) -> None:
        # as a plain attribute: it would be a second submodule with the same parameters
        vars(self)["_compiled"] = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled code: a copy, in a worker for example, compiles its own."""
        return {**vars(self), "_compiled": None}

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the compiled module, or the module itself if it cannot be compiled."""
        if self._gave_up:
            return self.module(tensordict)
        try:
            return self._run(tensordict)
        except _compiler_errors() as error:
            self._gave_up = True
            _say(f"{self._what} is not compiled: {_first_line(error)}")
        return self.module(tensordict)

    def _run(self, tensordict: TensorDictBase) -> TensorDictBase:
        compiled: Any = vars(self)["_compiled"]
        if compiled is None:
            return self._compile(tensordict)
        if "triton.cudagraphs" not in self._options:
            return compiled(tensordict)
        # the next call writes over the outputs of a CUDA graph
        torch.compiler.cudagraph_mark_step_begin()
        before = {id(x) for x in tensordict.values(True, True)}
        out: TensorDictBase = compiled(tensordict)
        for key, x in list(out.items(True, True)):
            if id(x) not in before:
                out.set(key, x.clone())
        return out

    def _compile(self, tensordict: TensorDictBase) -> TensorDictBase:
        _say(f"compiling {self._what}, which takes a minute or more where it is not cached")
        # a graph for each shape, so that it does not matter which ones were seen before
        vars(self)["_compiled"] = torch.compile(
            self.module, fullgraph=True, dynamic=False, options=self._options, **_own_limit()
        )
        with warnings.catch_warnings():
            # tensordict asks for an option that torch 2.13 no longer has
            warnings.filterwarnings("ignore", ".*inline_inbuilt_nn_modules", FutureWarning)
            # and torch's compiler for what torch has deprecated
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            return self._run(tensordict)


def _own_limit() -> dict[str, Any]:
    """Count recompilations per module, and allow one for every size of a minibatch."""
    # from torch 2.13 on; before that modules of one class share a limit of 8
    new = {"recompile_limit": 64, "isolate_recompiles": True}
    return new if new.keys() <= inspect.signature(torch.compile).parameters.keys() else {}


@cache
def _compiler_errors() -> tuple[type[Exception], ...]:
    """What the compiler raises; what a module raises while it is traced is among it."""
    # imports the compiler, which takes a second
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return (TorchDynamoException, FailOnRecompileLimitHit, GuardOnDataDependentSymNode)


def _finds_cpp_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _first_line(error: Exception) -> str:
    # a backend wraps what went wrong in it
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _say(text: str) -> None:
    print(f"experiment.compile: {text}", file=sys.stderr, flush=True)
