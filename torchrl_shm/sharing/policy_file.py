"""`config.json` of a shared policy: its contents, and how they become specs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from tensordict import NestedKey
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    OneHot,
    TensorSpec,
    Unbounded,
)

from torchrl_shm.networks import EnvSpecs

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"

FloatDtype = Literal["float16", "bfloat16", "float32", "float64"]
Dtype = FloatDtype | Literal["bool", "uint8", "int8", "int16", "int32", "int64"]


class _Entry(BaseModel):
    # JSON has no infinite numbers
    model_config = ConfigDict(ser_json_inf_nan="strings")


class ObservationEntry(_Entry):
    """An entry that the policy reads; entries are a list, because their order counts.

    The key of a nested entry is a list of names.
    """

    key: str | Annotated[list[str], Field(min_length=2)]
    shape: list[NonNegativeInt]
    dtype: Dtype

    @property
    def nested_key(self) -> NestedKey:
        """The key as TensorDicts have it."""
        return self.key if isinstance(self.key, str) else tuple(self.key)


class ContinuousAction(_Entry):
    """Numbers; `low` and `high`, row by row, are null where there are no bounds at all.

    Here and below, `shape` is null for a row.
    """

    kind: Literal["continuous"] = "continuous"
    size: PositiveInt
    shape: list[PositiveInt] | None = None
    dtype: FloatDtype
    low: list[float] | None
    high: list[float] | None


class CategoricalAction(_Entry):
    """One index below `choices`."""

    kind: Literal["categorical"] = "categorical"
    choices: PositiveInt


class MultiCategoricalAction(_Entry):
    """Several indices, each below its number of choices."""

    kind: Literal["multi_categorical"] = "multi_categorical"
    choices: list[PositiveInt]
    shape: list[PositiveInt] | None = None


class BinaryAction(_Entry):
    """Bits."""

    kind: Literal["binary"] = "binary"
    shape: list[PositiveInt]
    dtype: Dtype


class OneHotAction(_Entry):
    """One of `choices`, as a row of zeros and a one."""

    kind: Literal["one_hot"] = "one_hot"
    choices: PositiveInt


Action = Annotated[
    ContinuousAction | CategoricalAction | MultiCategoricalAction | BinaryAction | OneHotAction,
    Field(discriminator="kind"),
]


class Result(_Entry):
    """The evaluation with which the run ended."""

    mean_return: float
    success_rate: float | None


class PolicyFile(_Entry):
    """Contents of `config.json`; `observations` to `memory` rebuild the policy."""

    format_version: int = FORMAT_VERSION
    observations: list[ObservationEntry] = Field(min_length=1)
    action: Action
    # the factory of `torchrl_shm.networks` that makes the operator of the policy
    operator: Literal["make_actor_critic", "make_soft_actor_critic"] = "make_actor_critic"
    network: dict[str, JsonValue]
    memory: dict[str, JsonValue]
    # from here on information for people
    task: str
    memory_name: str
    seed: int
    frames: int
    evaluation: Result | None
    parameters: int
    memory_floats: int
    random_memory: bool
    versions: dict[str, str]
    command: str | None
    training: dict[str, JsonValue]
    onnx: bool = False

    def specs(self) -> EnvSpecs:
        """What the policy reads and does."""
        entries: Any = {
            entry.nested_key: Unbounded(torch.Size(entry.shape), dtype=getattr(torch, entry.dtype))
            for entry in self.observations
        }
        return EnvSpecs(Composite(entries), action_spec(self.action), list(entries))


def read_policy_file(path: Path) -> PolicyFile:
    """Read and check `config.json`."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; pass a folder that `torchrl-shm export` has written"
        )
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        # checked first, because other versions may have other entries
        version = data["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a shared policy: {error!r}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version={version!r}, this version of torchrl_shm reads "
            f"{FORMAT_VERSION}; install the one that wrote it, or a newer one"
        )
    try:
        return PolicyFile.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path} is not the configuration of a shared policy: {error}") from None


def observation_entries(specs: EnvSpecs) -> list[ObservationEntry]:
    """The entries of the specs, in the order of the policy."""
    entries: list[ObservationEntry] = []
    for key in specs.policy_keys:
        spec = specs.observation_spec_unbatched[key]
        name: Any = key if isinstance(key, str) else list(key)
        entries.append(ObservationEntry(key=name, shape=list(spec.shape), dtype=_name(spec.dtype)))
    return entries


def action_entry(spec: Any) -> Action:
    """The entry for the spec of an action that `make_actor_critic` takes."""
    shape = None if len(spec.shape) == 1 else list(spec.shape)
    match spec:
        case Binary():
            return BinaryAction(shape=list(spec.shape), dtype=_name(spec.dtype))
        case MultiCategorical():
            return MultiCategoricalAction(choices=spec.nvec.flatten().tolist(), shape=shape)
        case Categorical() if spec.shape:
            choices = [spec.n] * spec.shape.numel()
            return MultiCategoricalAction(choices=choices, shape=shape)
        case Categorical():
            return CategoricalAction(choices=spec.n)
        case OneHot():
            return OneHotAction(choices=spec.shape[-1])
        case _:
            low, high = None, None
            if isinstance(spec, Bounded):
                box: Any = spec.space
                low, high = (bound.flatten().tolist() for bound in (box.low, box.high))
            return ContinuousAction(
                size=spec.shape.numel(), shape=shape, dtype=_name(spec.dtype), low=low, high=high
            )


def action_spec(action: Action) -> TensorSpec:
    """The spec of which `action_entry` made an entry."""
    match action:
        case CategoricalAction(choices=choices):
            return Categorical(choices)
        case MultiCategoricalAction(choices=choices, shape=shape):
            return MultiCategorical(torch.tensor(choices).reshape(shape or [len(choices)]))
        case BinaryAction():
            return Binary(shape=torch.Size(action.shape), dtype=getattr(torch, action.dtype))
        case OneHotAction(choices=choices):
            return OneHot(choices)
        case ContinuousAction():
            shape, dtype = (
                torch.Size([action.size] if action.shape is None else action.shape),
                getattr(torch, action.dtype),
            )
    if action.low is None or action.high is None:
        return Unbounded(shape, dtype=dtype)
    bounds = (torch.tensor(bound, dtype=dtype) for bound in (action.low, action.high))
    # raises if their number is wrong
    low, high = (bound.reshape(shape) for bound in bounds)
    return Bounded(low=low, high=high, shape=shape, dtype=dtype)


def _name(dtype: torch.dtype | None) -> Any:
    return str(dtype).removeprefix("torch.")
