"""A step of a policy as an ONNX file, for programs without torch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch

from torchrl_shm.sharing.plain_policy import PlainPolicy
from torchrl_shm.sharing.step import PolicyStep, first_line
from torchrl_shm.training.files import write_atomically

ONNX_FILE = "policy.onnx"
_PACKAGES = ("onnx", "onnxscript")


def check_onnx() -> None:
    """Raise ImportError where a package is missing that writes ONNX files."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files need {' and '.join(missing)}: pip install 'torchrl_shm[onnx]'"
        )


def write_onnx(policy: PlainPolicy, path: str | Path) -> PolicyStep:
    """Write one step of a policy as an ONNX file, for any batch size.

    Inputs and outputs have the names of the step, and are what it says.

    Args:
        policy: what `load_policy` returned, or any other.
        path: the file.

    Returns:
        The step, whose docstring says how to call the file.

    Raises:
        ImportError: the extra `onnx` is not installed.
        TypeError: the policy is not made by networks of `torchrl_shm`.
        ValueError: the memory, or an encoder of one's own, has no equivalent in ONNX.
        OSError: the file cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from torchrl_shm import WindEnv
        >>> from torchrl_shm.modules import make_mlp
        >>> from torchrl_shm.networks import EnvSpecs, make_actor_critic
        >>> from torchrl_shm.sharing import PlainPolicy, write_onnx
        >>> specs = EnvSpecs.of(WindEnv(4))
        >>> operator = make_actor_critic(specs, make_mlp)
        >>> policy = PlainPolicy(operator.get_policy_operator(), specs)
        >>> write_onnx(policy, Path(mkdtemp(), "policy.onnx")).output_names
        ['action', 'loc', 'scale']
    """
    step = PolicyStep(policy)
    write_atomically(Path(path), make_onnx(step))
    return step


def make_onnx(step: PolicyStep) -> bytes:
    """Make the content of an ONNX file, see `write_onnx`."""
    check_onnx()
    program = step.export()
    # the exporter tells of packages of others that it does not find
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # and of what it deprecates in itself
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, input_names=step.input_names, output_names=step.output_names,
                dynamo=True, verbose=False,
            )  # fmt: skip
    # it raises classes of its own, and whatever its parts do
    except Exception as error:
        raise ValueError(f"ONNX refuses this policy: {first_line(error)}") from error
    finally:
        logger.setLevel(level)
    assert made is not None
    return made.model_proto.SerializeToString()
