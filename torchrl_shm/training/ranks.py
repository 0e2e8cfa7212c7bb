"""Several processes that learn together, as `torchrun` starts them.

Each process, a rank, has a part of the environments and a copy of the networks. It collects from
its own environments, and learns from its part of every minibatch; gradients are averaged, so that
all copies stay equal. That is DD-PPO (Wijmans et al., ICLR 2020) without its early stop of slow
ranks. Without `torchrun` there is one rank, for which all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrl_shm.training.experiment import Experiment

T = TypeVar("T")


def join() -> None:
    """Meet the other processes that `torchrun` has started; more than once does no harm.

    Raises:
        RuntimeError: they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # objects and tensors of the CPU by gloo, on machines with GPUs too
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Part from the other processes, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer any more.

    Args:
        error: what was raised.

    Returns:
        Whether it is one of `torch.distributed`.

    Examples:
        >>> from torchrl_shm.training.ranks import is_lost
        >>> is_lost(RuntimeError("Connection closed by peer"))
        False
    """
    # those of gloo have no class of their own, but its path
    gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return num_ranks() > 1 and (gloo or isinstance(error, dist.DistError))


def num_ranks() -> int:
    """Number of processes that learn together.

    Returns:
        1 without `torchrun`.

    Examples:
        >>> from torchrl_shm.training.ranks import num_ranks, rank
        >>> num_ranks(), rank()
        (1, 0)
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0. Process 0 writes the folder of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def share_of(experiment: Experiment) -> Experiment:
    """Give this process its part of a run, whose values are those of all processes together.

    Args:
        experiment: the values of the run.

    Returns:
        The same with the environments and frames of one process, a seed of its own, and its GPU
        if the device is `cuda`.

    Raises:
        ValueError: the environments cannot be shared out, or `on_nonfinite` is `"skip"`, with
            which the processes would lose step.

    Examples:
        >>> from torchrl_shm.training import Experiment
        >>> from torchrl_shm.training.ranks import share_of
        >>> share_of(Experiment(num_envs=64)).num_envs
        64
    """
    if num_ranks() == 1:
        return experiment
    if experiment.on_nonfinite == "skip":
        raise ValueError(
            "experiment.on_nonfinite=skip leaves minibatches out, and all processes need as many; "
            "use stop"
        )
    device = experiment.device
    return replace(
        experiment,
        num_envs=divide("experiment.num_envs", experiment.num_envs),
        total_frames=-(-experiment.total_frames // num_ranks()),
        seed=own_seed(experiment.seed),
        device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device,
    )


def divide(name: str, number: int) -> int:
    """Divide what all processes do together by their number.

    Args:
        name: what it is, for the error.
        number: the number.

    Returns:
        The part of one process.

    Raises:
        ValueError: it is no multiple of the number of processes.

    Examples:
        >>> from torchrl_shm.training.ranks import divide
        >>> divide("algo.sequences_per_minibatch", 16)
        16
    """
    if number % num_ranks():
        raise ValueError(f"{name}={number} must be a multiple of the {num_ranks()} processes")
    return number // num_ranks()


def own_seed(seed: int) -> int:
    """Make a seed for this process from that of the run.

    Args:
        seed: that of the run.

    Returns:
        Another one on every process, `seed` on process 0.

    Examples:
        >>> from torchrl_shm.training.ranks import own_seed
        >>> own_seed(3)
        3
    """
    # far from the seeds of runs that are compared
    return seed + 1_000_003 * rank()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of all processes, in place and in one message.

    Args:
        parameters: the parameters, in the same order everywhere. One without a gradient on this
            process counts as zero if it has one on another.
    """
    if num_ranks() == 1:
        return
    learned = list(parameters)
    with torch.no_grad():
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in learned if p.grad is not None])
        flat = _add_up(flat) / num_ranks()
        for parameter, part in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            parameter.grad = part.view_as(parameter)


def average_buffers(module: nn.Module) -> None:
    """Average what a module has counted, such as running means of equally many numbers.

    Args:
        module: the module, whose floating point buffers are averaged in place.
    """
    if num_ranks() == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(_add_up(buffer.clone()) / num_ranks())


def copy_first(module: nn.Module) -> None:
    """Give a module the parameters and buffers that it has on process 0.

    Args:
        module: the module.
    """
    if num_ranks() == 1:
        return
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, 0)


def largest(number: Tensor) -> float:
    """The largest of one number per process.

    Args:
        number: a scalar of any float dtype, shape `[]`.

    Returns:
        The number.

    Examples:
        >>> import torch
        >>> from torchrl_shm.training.ranks import largest
        >>> largest(torch.tensor(2.5))
        2.5
    """
    if num_ranks() > 1:
        number = number.detach().clone()
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return float(number)


def standardize(x: Tensor) -> Tensor:
    """Shift and scale to a mean of 0 and a standard deviation of 1, over all processes.

    Args:
        x: floats `[...]` of any shape, the same everywhere.

    Returns:
        Floats `[...]` of that shape. Deviations below 1e-4 count as 1e-4, as in TorchRL's `GAE`.

    Examples:
        >>> import torch
        >>> from torchrl_shm.training.ranks import standardize
        >>> standardize(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.2247,  0.0000,  1.2247])
    """
    count = x.numel() * num_ranks()
    mean = _add_up(x.sum()) / count
    std = (_add_up((x - mean).square().sum()) / count).sqrt()
    return (x - mean) / std.clamp_min(1e-4)


def _add_up(x: Tensor) -> Tensor:
    if num_ranks() > 1:
        dist.all_reduce(x)
    return x


def average_numbers(row: dict[str, float]) -> dict[str, float]:
    """Average numbers over all processes; those that are NaN on some count on the others only.

    Args:
        row: numbers by name, the same names everywhere.

    Returns:
        The averages.

    Examples:
        >>> from torchrl_shm.training.ranks import average_numbers
        >>> average_numbers({"return": 3.0})
        {'return': 3.0}
    """
    if num_ranks() == 1:
        return row
    values = torch.tensor(list(row.values()), dtype=torch.float64)
    sums = _add_up(torch.stack([values.nan_to_num(nan=0.0), (~values.isnan()).double()]))
    return dict(zip(row, (sums[0] / sums[1]).tolist(), strict=True))


def on_first(call: Callable[[], T]) -> T | None:
    """Call something on process 0; where that fails, the others end without a word.

    Args:
        call: what to call.

    Returns:
        Its result on process 0, `None` on all others.

    Raises:
        SystemExit: on other processes, because of an error on process 0.

    Examples:
        >>> from torchrl_shm.training.ranks import on_first
        >>> on_first(lambda: 3)
        3
    """
    if rank() > 0:
        if not from_first(True):
            raise SystemExit(1)
        return None
    try:
        result = call()
    except BaseException:
        from_first(False)
        raise
    from_first(True)
    return result


def from_first(value: T) -> T:
    """Give all processes what process 0 has.

    Args:
        value: anything that can be pickled; that of others is not looked at.

    Returns:
        The value of process 0.
    """
    if num_ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    return values[0]


def to_first(value: T) -> list[T] | None:
    """Give process 0 what all processes have.

    Args:
        value: anything that can be pickled.

    Returns:
        The values in order on process 0, `None` on all others.
    """
    if num_ranks() == 1:
        return [value]
    values: list[Any] | None = [None] * num_ranks() if rank() == 0 else None
    dist.gather_object(value, values, 0)
    return values


def everyone(value: T) -> list[T]:
    """Give all processes what all have.

    Args:
        value: anything that can be pickled.

    Returns:
        The values in the order of the processes.

    Examples:
        >>> from torchrl_shm.training.ranks import everyone
        >>> everyone("a")
        ['a']
    """
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values
