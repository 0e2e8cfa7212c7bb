"""A policy as a folder to be shared: safetensors, `config.json` and a model card, no code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.errors import InstantiationException
from hydra_zen import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torchrl.envs import EnvBase

from torchrl_shm.checks import check_option
from torchrl_shm.configs import instantiate_saved, load_config
from torchrl_shm.configs.saved import shared_command
from torchrl_shm.networks import EnvSpecs, make_actor_critic, make_soft_actor_critic
from torchrl_shm.sharing.card import model_card
from torchrl_shm.sharing.onnx_file import ONNX_FILE, check_onnx, make_onnx
from torchrl_shm.sharing.plain_policy import PlainPolicy
from torchrl_shm.sharing.policy_file import (
    CONFIG_FILE,
    PolicyFile,
    Result,
    action_entry,
    observation_entries,
    read_policy_file,
)
from torchrl_shm.sharing.step import PolicyStep
from torchrl_shm.sharing.targets import check_targets
from torchrl_shm.training import RunFolder, Which
from torchrl_shm.training.files import write_atomically
from torchrl_shm.training.weights import load_weights

_WEIGHTS, _CARD = "model.safetensors", "README.md"
_OPERATORS: dict[str, Callable[..., Any]] = {
    make.__name__: make for make in (make_actor_critic, make_soft_actor_critic)
}


def export_policy(
    run: str | Path,
    to: str | Path | None = None,
    *,
    checkpoint: Which = "latest",
    onnx: bool = False,
) -> Path:
    """Write the policy of a run into a folder that `load_policy` reads, and that can be uploaded.

    The files are `model.safetensors`, with all weights that acting needs and without the value
    head; `config.json`; and `README.md`, a model card, in which you choose the license.

    Args:
        run: folder of a run.
        to: folder to write to: a new one, an empty one, or an earlier export that nobody has
            edited. Default: `export` in the folder of the run.
        checkpoint: which checkpoint of the run, see `Checkpoints.load`.
        onnx: also write `policy.onnx`, one step as a pure function, see `PolicyStep`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: `run` is not the folder of a run, or has no checkpoint yet.
        FileExistsError: `to` holds something else.
        ValueError: the run is of an older version, its network cannot be exported, or `checkpoint`
            is unknown; or its memory has no equivalent in ONNX.
        ImportError: the extra `onnx` is not installed.
        RuntimeError: every checkpoint of the run is damaged.
    """
    check_option("checkpoint", checkpoint, Which)
    if onnx:
        check_onnx()
    run = Path(run)
    saved, parts = load_config(run), instantiate_saved(run)
    run_folder = RunFolder(run)
    state = run_folder.checkpoints.load(checkpoint)
    folder = run / "export" if to is None else Path(to)
    _check_free(folder)
    network = dict(parts["network"].keywords)
    operator_name = parts["network"].func.__name__
    if _OPERATORS.get(operator_name) is not parts["network"].func:
        raise ValueError(f"{run}: only networks of {' and '.join(_OPERATORS)} can be exported")

    if not isinstance(network.get("encoder", ""), str):
        raise ValueError(
            f"{run} has an encoder of its own, and a shared policy runs no code of others; build a "
            "PlainPolicy from the run, as docs/recipes/production.md shows, and export that"
        )

    env = parts["env"](num_envs=1, seed=0)
    specs = EnvSpecs.of(env, network.pop("policy_keys", None))
    if not env.is_closed:
        env.close()
    operator = parts["network"].func(specs, parts["memory"], **network)
    load_weights(operator, state["operator"], run)
    policy = PlainPolicy(operator.get_policy_operator(), specs)

    experiment = parts["experiment"]
    plain: Any = OmegaConf.to_container(saved, resolve=True)
    # of a critic with a memory of its own the policy knows nothing
    network.pop("actor_memory", None)
    options: Any = OmegaConf.to_container(OmegaConf.create(network))
    config = PolicyFile(
        observations=observation_entries(specs),
        action=action_entry(specs.action_spec_unbatched),
        operator=operator_name,
        network=options,
        memory=plain["network"].get("actor_memory") or plain["memory"],
        task=experiment.names["env"],
        memory_name=experiment.names["memory"],
        seed=experiment.seed,
        frames=state["frames"],
        evaluation=_evaluation(run_folder, state["frames"]),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        memory_floats=sum(x.numel() for x in policy.initial_memory(1).values()),
        random_memory=_draws(policy),
        versions={name: version(name) for name in ("torchrl_shm", "torch", "torchrl")},
        command=shared_command(plain["command"]) if "command" in plain else None,
        training={group: plain[group] for group in ("env", "algo", "collector")},
        onnx=onnx,
    )

    weights = {name: x.contiguous() for name, x in policy.module.state_dict().items()}
    # all of it before anything is made or removed, because ONNX may refuse the policy
    files = {ONNX_FILE: make_onnx(PolicyStep(policy))} if onnx else {}
    files |= {
        _WEIGHTS: save(weights, {"format": "pt"}),
        _CARD: model_card(config).encode(),
        CONFIG_FILE: (config.model_dump_json(indent=2) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # removed first and written last, because a folder without it is not loaded
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    (folder / ONNX_FILE).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return folder


def load_policy(folder: str | Path, device: torch.device | str = "cpu") -> PlainPolicy:
    """Rebuild a policy that `export_policy` wrote; its environment need not be installed.

    No code in the files is run: weights are read as safetensors, and `config.json` may build only
    memories of `torchrl_shm` and those that `add_memory` was given in this process.

    Args:
        folder: the folder.
        device: device of the parameters.

    Returns:
        The policy, for one step at a time; `policy.module` is the policy for TorchRL.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, is of another version, would build something other than a
            memory, or does not fit the other file.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    config = read_policy_file(path)
    memory = _build(OmegaConf.create(config.memory), "memory", path)
    options: dict[str, Any] = config.network
    try:
        specs = config.specs()
        operator = _OPERATORS[config.operator](specs, memory, **options)
    # values of the right types can still be refused by what they are passed to
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not build a policy: {error}") from error
    policy = PlainPolicy(operator.get_policy_operator(), specs)
    _load_weights(policy.module, folder / _WEIGHTS)
    return policy.to(device)


def load_task(folder: str | Path) -> Callable[..., EnvBase]:
    """Rebuild the task on which a policy of `export_policy` was trained.

    As with `load_policy`, no code in the files is run: `config.json` may build only the tasks of
    `torchrl_shm`.

    Args:
        folder: the folder.

    Returns:
        What makes the environment, for `torchrl_shm.training.make_test_env`.

    Raises:
        FileNotFoundError: `config.json` is missing.
        ValueError: it is damaged, is of another version, or names an environment of another
            package.
    """
    path = Path(folder) / CONFIG_FILE
    env = OmegaConf.create({"env": read_policy_file(path).training.get("env")}).env
    return _build(env, "env", path)


def _build(config: Any, group: Literal["memory", "env"], path: Path) -> Callable[..., Any]:
    """The factory that a part of the file describes."""
    check_targets(config, group, path)
    try:
        factory = instantiate(config)
    except InstantiationException as error:
        raise ValueError(f"{path} does not describe its {group}: {error}") from error
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ValueError(
            f"{path} does not describe its {group}: _target_ and _partial_ are missing"
        )
    if isinstance(factory, partial):
        try:
            # of a class that has a metaclass this tells more
            make: Any = factory.func
            made_by = make.__init__ if isinstance(make, type) else make
            signature(made_by).bind_partial(*factory.args, **factory.keywords)
        except TypeError as error:
            raise ValueError(f"{path} does not describe its {group}: {error}") from error
    return factory


def _load_weights(module: nn.Module, path: Path) -> None:
    """Load a file that has exactly the tensors of the module."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; copy the whole folder of the policy")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged, copy it again: {error}") from error
    load_weights(module, found, path)


def _check_free(folder: Path) -> None:
    """Refuse to overwrite anything but an export that nobody has edited."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if not folder.exists() or (folder.is_dir() and not names):
        return
    if names - {ONNX_FILE} == {_WEIGHTS, CONFIG_FILE, _CARD}:
        try:
            card = model_card(read_policy_file(folder / CONFIG_FILE))
            if (folder / _CARD).read_text(encoding="utf-8") == card:
                return
        except ValueError:
            pass
    raise FileExistsError(
        f"{folder} holds something else, or a model card that was edited, which would be "
        "overwritten; choose another to=..., or move it away"
    )


def _evaluation(run: RunFolder, frames: int) -> Result | None:
    """The final evaluation of the run, if it used this checkpoint."""
    summary = run.summary
    if summary is None or summary["frames"] != frames:
        return None
    return Result(mean_return=summary["eval_return"], success_rate=summary["eval_success"])


def _draws(policy: PlainPolicy) -> bool:
    """Whether the memory chooses at random."""
    return any(getattr(part, "num_choices", None) is not None for part in policy.modules())
