"""The probe of long spans asks what it says, and tells a memory from none."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from tests.benchmarks.spans import (
    GOAL,
    SHOWN,
    SYMBOLS,
    Case,
    build,
    make_batch,
    summarize,
    train,
)

THETA = "module.1.cell.theta"


@pytest.mark.parametrize(("task", "length"), [("recall", 30), ("previous", 4), ("recite", 6)])
def test_answers(task: str, length: int) -> None:
    x, answers = make_batch(task, length)
    symbols, asked = x[..., :SYMBOLS], x[..., -1].bool()
    assert asked.sum(1).unique().tolist() == [answers.shape[1]]
    first = {"recall": 0, "previous": 0, "recite": length - 1}[task]
    assert_close(symbols[:, first].argmax(-1), answers[:, 0])
    if task == "recall":
        # shown for a while, then for as long as is asked not at all
        assert symbols.sum(-1).sum(1).unique().tolist() == [SHOWN]
        assert x.shape[1] == SHOWN + length
    elif task == "previous":
        assert_close(symbols[:, :-length].argmax(-1), answers)
    else:
        assert_close(symbols[:, :length].flip(1).argmax(-1), answers)


@pytest.mark.slow
def test_a_memory_learns_and_none_does_not() -> None:
    found = {
        name: train(Case(name, "previous", 4, 32, 0.12, "span", 0), 250) for name in ("lru", "mlp")
    }
    assert float(str(found["lru"]["accuracy"])) >= GOAL
    assert int(str(found["lru"]["updates"])) < 250
    assert 0.2 < float(str(found["mlp"]["accuracy"])) < 0.3


def test_the_start_follows_the_span() -> None:
    models = [
        build(Case("shm", "recall", 500, 0, 0.12, start, 0))
        for start in ("released", "span", "near")
    ]
    released, ours, near = (
        float(dict(model.named_parameters())[THETA].detach().std()) for model in models
    )
    assert ours < 0.3 * released
    assert near == pytest.approx(ours / 10, rel=0.05)


def test_table() -> None:
    case = {
        "memory": "shm",
        "task": "recall",
        "length": "50",
        "time_size": "0",
        "slowest": "0.12",
        "start": "span",
    }
    rows = [
        {**case, "seed": str(i), "updates": updates, "accuracy": accuracy}
        for i, (updates, accuracy) in enumerate([("100", "0.98"), ("300", "0.99"), ("500", "0.3")])
    ]
    assert summarize(rows, 500).splitlines()[-1] == "| `shm` | none | span | 300 (2/3) |"
    assert summarize(rows[2:], 500).splitlines()[-1] == "| `shm` | none | span | 30% (0/1) |"
