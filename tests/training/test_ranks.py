"""Several processes that learn together: each finds what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests._processes import ranks as processes
from torchrl_shm.networks.normalization import Moments
from torchrl_shm.training import Experiment, ranks


def check_sums() -> None:
    """Gradients, buffers, numbers."""
    number = ranks.rank()
    one, two = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    one.grad = torch.full((2, 3), float(number))
    # that of the first process has none
    two.grad = torch.tensor([2.0, 4.0]) if number else None
    ranks.average_gradients([one, two])
    assert one.grad is not None
    assert two.grad is not None
    assert one.grad.tolist() == [[0.5] * 3] * 2
    assert two.grad.tolist() == [1, 2]

    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.tensor([1.0, 2.0]) * (number + 1)
    ranks.average_buffers(norm)
    assert norm.running_mean.tolist() == [1.5, 3]
    assert int(norm.num_batches_tracked) == 0  # pyright: ignore

    row = {"loss": float(number), "return": float("nan") if number else 3.0, "none": float("nan")}
    means = ranks.average_numbers(row)
    assert (means["loss"], means["return"]) == (0.5, 3)
    assert means["none"] != means["none"]
    assert ranks.largest(torch.tensor(float(number))) == 1


def check_standardize() -> None:
    """As one process would with the data of both."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(8, 5, 1, generator=generator) * 3 + 7
    own = both.chunk(2)[ranks.rank()]
    expected = (both - both.mean()) / both.std(correction=0)
    found = torch.cat(ranks.everyone(ranks.standardize(own)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def check_objects() -> None:
    """What is sent from one to others."""
    number = ranks.rank()
    assert ranks.from_first(f"of {number}") == "of 0"
    assert ranks.to_first(number) == (None if number else [0, 1])
    assert ranks.everyone({"rank": number}) == [{"rank": 0}, {"rank": 1}]
    called: list[int] = []
    assert ranks.on_first(lambda: called.append(1) or "done") == (None if number else "done")
    assert len(called) == 1 - number
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, float(number + 1))
    ranks.copy_first(network)
    assert network.weight.unique().tolist() == [1]


def check_parts() -> None:
    """Every process has its part."""
    own = ranks.share_of(Experiment(num_envs=8, total_frames=101, seed=3))
    assert (own.num_envs, own.total_frames) == (4, 51)
    assert len(set(ranks.everyone(own.seed))) == 2
    for wrong in ({"num_envs": 7}, {"on_nonfinite": "skip"}):
        options: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ranks.share_of(Experiment(**options))


def check_moments() -> None:
    """Statistics of observations are merged in the same order everywhere."""
    x = torch.arange(12.0).reshape(6, 2)
    before: Any = Moments.of(x.chunk(2)[ranks.rank()], 1)
    first, second = ranks.everyone(before)
    merged, whole = first.merge(second), Moments.of(x, 1)
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.variance, whole.variance)


def check_an_error_on_the_first() -> None:
    """The other one ends without a word."""
    with pytest.raises(SystemExit if ranks.rank() else IndexError):
        ranks.on_first(lambda: [][0])


CHECKS = [
    check_sums, check_standardize, check_objects, check_parts, check_moments,
    check_an_error_on_the_first,
]  # fmt: skip


def test_two_processes(tmp_path: Path) -> None:
    def run() -> None:
        ranks.join()
        # once more does no harm
        ranks.join()
        assert ranks.num_ranks() == 2
        for check in CHECKS:
            check()
        ranks.leave()
        assert ranks.num_ranks() == 1

    with processes(run, tmp_path) as children:
        codes = [child.wait() for child in children]
    assert codes == [0, 0], [child.text() for child in children]


def test_one_process() -> None:
    network = nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    ranks.join()
    ranks.average_gradients(network.parameters())
    ranks.copy_first(network)
    ranks.average_buffers(network)
    for parameter, grad in zip(network.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, grad)
    experiment = Experiment(num_envs=7, on_nonfinite="skip")
    assert ranks.share_of(experiment) is experiment
    # as TorchRL's GAE would
    x = torch.randn(4, 3, 1)
    expected = (x - x.sum() / 12) / ((x - x.sum() / 12).pow(2).sum() / 12).sqrt()
    assert torch.equal(ranks.standardize(x), expected)
    assert float(ranks.standardize(torch.ones(3)).abs().max()) == 0
