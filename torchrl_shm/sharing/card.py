"""The model card of a shared policy: what it is, how well it does, how to use it."""

from __future__ import annotations

import json

from torchrl_shm.sharing.policy_file import (
    BinaryAction,
    CategoricalAction,
    ContinuousAction,
    MultiCategoricalAction,
    ObservationEntry,
    OneHotAction,
    PolicyFile,
)


def model_card(config: PolicyFile) -> str:
    """Write the card, in the format of the Hugging Face hub: front matter in YAML, then Markdown.

    Args:
        config: contents of `config.json`, from which the whole card follows.

    Returns:
        The text of `README.md`; its Python block runs in the folder of the policy.
    """
    tags = ["reinforcement-learning", "torchrl", "partial-observability", "memory",
            config.memory_name, config.task]  # fmt: skip
    # JSON is valid YAML, whatever characters the names have
    front = f"""\
---
library_name: torchrl_shm
pipeline_tag: reinforcement-learning
tags: {json.dumps(tags)}
# license: name the license under which you share it, for example apache-2.0
---
"""
    return f"""\
{front}
# {config.task} with the memory {config.memory_name}

A policy for the task `{config.task}` with the memory `{config.memory_name}` of `torchrl_shm`,
trained by reinforcement learning: {config.frames:,} steps, seed {config.seed}.

| | |
|---|---|
| reads | {_reads(config)} |
| does | {_does(config)} |
| parameters | {config.parameters:,} |
| memory | {config.memory_floats:,} floats per agent |
| written with | {", ".join(f"{name} {version}" for name, version in config.versions.items())} |

## Results

{_results(config)}

## Use

With `torchrl_shm` installed, in this folder:

```python
{_example(config)}
```

Pass the memory that a step returns to the next step. Where episodes start, pass `is_init`,
bool of shape `[B]`. `deterministic=False` draws actions, as in training. `policy.module` is the
policy as a module of TorchRL. Loading runs no code of these files: the weights are safetensors, and
`config.json` may name nothing but memories of `torchrl_shm`.
{_onnx(config)}
## Limits

{_limits(config)}
"""


def _reads(config: PolicyFile) -> str:
    return ", ".join(
        f"`{_label(entry)}` {entry.dtype} `{_shape(entry.shape)}`" for entry in config.observations
    )


def _does(config: PolicyFile) -> str:
    match config.action:
        case ContinuousAction(size=size, shape=shape):
            return f"continuous actions `{_shape(shape or [size])}`"
        case CategoricalAction(choices=choices):
            return f"one of {choices} actions, an index `[B]`"
        case MultiCategoricalAction(choices=choices, shape=shape):
            sizes = ", ".join(map(str, choices)) if len({*choices}) > 1 else str(choices[0])
            each = "choices" if len({*choices}) > 1 else "choices each"
            return f"{len(choices)} indices of {sizes} {each} `{_shape(shape or [len(choices)])}`"
        case BinaryAction(shape=shape):
            return f"bits `{_shape(shape)}`"
        case OneHotAction(choices=choices):
            return f"one of {choices} actions, one-hot `{_shape([choices])}`"


def _label(entry: ObservationEntry) -> str:
    return entry.key if isinstance(entry.key, str) else ".".join(entry.key)


def _key(entry: ObservationEntry) -> str:
    """The key as code."""
    return json.dumps(entry.key) if isinstance(entry.key, str) else repr(entry.nested_key)


def _onnx(config: PolicyFile) -> str:
    if not config.onnx:
        return ""
    drawn = " What its memory would draw is an input." if config.random_memory else ""
    return f"""
`policy.onnx` is one step for programs without torch: observation and state in (zeros where an
episode starts), action and next state out, by name and for any batch size.{drawn}
"""


def _shape(shape: list[int]) -> str:
    return f"[{', '.join(map(str, ('B', *shape)))}]"


def _results(config: PolicyFile) -> str:
    made = (
        "The values with which it was trained are in `config.json`."
        if config.command is None
        else f"Trained and evaluated by\n\n```bash\n{config.command}\n```"
    )
    if config.evaluation is None:
        return f"The run has no evaluation of this checkpoint.\n\n{made}"
    rows = [f"| mean return | {config.evaluation.mean_return:g} |"]
    if config.evaluation.success_rate is not None:
        rows.append(f"| success rate | {config.evaluation.success_rate:.1%} |")
    return "\n".join(
        [
            "On the test tasks, with the mean or the most likely action:",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            made,
        ]
    )


def _example(config: PolicyFile) -> str:
    """Code that loads the policy and takes steps, with zeros for observations."""
    tensors = {
        _key(entry): f"torch.zeros({[1, *entry.shape]}, dtype=torch.{entry.dtype})"
        for entry in config.observations
    }
    if len(tensors) == 1:
        observation = next(iter(tensors.values()))
    else:
        lines = [f"    {key}: {tensor}," for key, tensor in tensors.items()]
        observation = "\n".join(["{", *lines, "}"])
    return f"""\
import torch
from torchrl_shm.sharing import load_policy

policy = load_policy(".")
memory = policy.initial_memory(batch_size=1)
# put the observation of your environment here
observation = {observation}
for step in range(3):
    action, memory = policy(observation, memory)
print(action)"""


def _limits(config: PolicyFile) -> str:
    limits = [
        "It was trained on this task alone and expects observations on the scales of this task.",
        "Its memory must start empty and be passed on from every step to the next.",
    ]
    if _is_of_gym(config):
        limits += _limits_of_gym(config)
    elif isinstance(config.action, ContinuousAction):
        limits.append(
            "Its actions are not clipped; `policy.specs.action_spec_unbatched` has the bounds of "
            "the task."
        )
    if config.memory.get("clamp", 0) is None:
        limits.append(
            "Its memory has no bound (`clamp` is null): in episodes that are far longer than those "
            "of the training it can overflow. A loop in Python raises then, an ONNX file does not."
        )
    if config.random_memory:
        limits.append(
            "Its memory draws from torch's generator, with the mean action, too; "
            "`torch.manual_seed` repeats it."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _is_of_gym(config: PolicyFile) -> bool:
    env = config.training.get("env")
    target = str(env.get("_target_")) if isinstance(env, dict) else ""
    return target.endswith((".make_gym_env", ".make_popgym_env"))


def _limits_of_gym(config: PolicyFile) -> list[str]:
    """What `make_gym_env` does between a policy and a task, for programs that do without."""
    match config.action:
        case ContinuousAction(low=[*_]):
            does = (
                "Its actions are not clipped, and -1 and 1 are the bounds of the task, whatever "
                "these are: the task takes `low + (action.clamp(-1, 1) + 1) / 2 * (high - low)`, "
                "rounded if it takes whole numbers."
            )
            previous = "the action clipped to -1 and 1"
        case ContinuousAction():
            does = (
                "Its actions are not clipped: `make_gym_env` scales -1 to 1 to the bounds of an "
                "element that has two, clips at a single bound, and counts from 1 inside of it "
                "where 0 is not."
            )
            previous = "the action itself"
        case BinaryAction():
            does, previous = "Its actions are the bits that the task takes.", "the bits"
        case _:
            does = "Its indices count from 0: add the `start` of the space of the task."
            previous = "one-hot, one block after the other"
    reads = (
        "Of what it reads, indices are one-hot, bytes whose `high` is less than 255 are divided by "
        "it, and all numbers but other bytes are float32"
    )
    if any(entry.key == "previous_action" for entry in config.observations):
        reads += f"; `previous_action` is {previous}, and 0 where an episode starts"
    return [does, f"{reads}."]
