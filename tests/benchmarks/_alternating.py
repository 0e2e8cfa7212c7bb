"""A recipe and a plain torch loop that take turns, batch by batch, in one process."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_shm.training import Experiment, RolloutCollector


class PlainLoop(Protocol):
    """An algorithm on tensors, with a state of torch's generator of its own."""

    def update(self) -> tuple[float, float]:
        """Collect a batch and learn from it; the two mean losses of its gradient steps."""
        ...


class Alternating(RolloutCollector):
    """The recipe's collector, which lets a plain loop make an update after each of the recipe's.

    Attributes:
        make_plain: makes the plain loop from the state of torch's generator.
        losses: of the plain loop, one pair for each update.
        seconds: CPU seconds of each update, of the recipe and of the plain loop.
    """

    make_plain: Callable[[Tensor], PlainLoop]

    def __iter__(self) -> Iterator[TensorDictBase]:
        self.losses: list[tuple[float, float]] = []
        self.seconds: list[tuple[float, float]] = []
        plain = self.make_plain(torch.random.get_rng_state())
        batches = super().__iter__()
        for _ in range(self.num_batches):
            start = time.process_time()
            yield next(batches)
            # the recipe has come back for more
            middle = time.process_time()
            self.losses.append(plain.update())
            self.seconds.append((middle - start, time.process_time() - middle))


def alternate(
    recipe: Callable[..., Any],
    experiment: Experiment,
    algo: Any,
    make_plain: Callable[[Tensor], PlainLoop],
    columns: tuple[str, str],
    *,
    compared: int,
) -> tuple[list[tuple[float, float]], float]:
    """Run both sides.

    Args:
        recipe: a recipe's `main` with environment, memory and network.
        experiment: its experiment, whose folder is a temporary one.
        algo: its hyperparameters.
        make_plain: makes the plain loop from the state of torch's generator, when the recipe has
            made its networks.
        columns: those of the recipe's metrics that hold the plain loop's two losses.
        compared: number of first updates whose losses are compared, for rounding grows with every
            gradient step.

    Returns:
        CPU seconds of each update of the recipe and of the plain loop, without the first, which
        warms up, and the largest difference between their losses.
    """
    collectors: list[Alternating] = []

    def collector(*args: Any, **options: Any) -> Alternating:
        rollouts = Alternating(*args, **options)
        rollouts.make_plain = make_plain
        collectors.append(rollouts)
        return rollouts

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        recipe(replace(experiment, run_dir=f"{folder}/run"), algo, collector)
        with open(f"{folder}/run/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    (rollouts,) = collectors
    ours = [[float(row[name]) for name in columns] for row in rows]
    pairs = zip(ours[:compared], rollouts.losses[:compared], strict=True)
    difference = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    return rollouts.seconds[1:], difference
