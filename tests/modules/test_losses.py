"""Every loss with a memory is exact, or says what to do; see the table in `_loss_table.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.modules._helpers import STEP
from tests.modules._loss_checks import (
    build,
    collected,
    copy_of,
    gradients,
    memory_parameters,
    perturb,
    run,
    share_heads,
    share_memories,
    with_features,
)
from tests.modules._loss_table import CASES, DETACHED, EXACT, Case
from tests.modules._losses import Parts
from torchrl_shm import unroll

STATES: list[Any] = ["lean", "stored", "zero"]
# what a loss averages over the batch depends on all steps
MIXED = {"TD3BCLoss": "loss_actor", "CQLLoss": "loss_cql"}

DIRECT = [
    pytest.param(name, where, state, id=f"{name}-{where}-{state}")
    for name, case in CASES.items()
    for where in case.outcomes
    for state in STATES
]
UNROLLED = [
    pytest.param(name, where, id=f"{name}-{where}")
    for name, case in CASES.items()
    for where in case.outcomes
]


def heads_of(case: Case, where: str, state: Any, made: Parts) -> Any:
    torch.manual_seed(0)
    parts = Parts(where, state, heads=True, same=case.same)
    parts.memories = made.memories
    return build(case.make, parts)


@pytest.mark.parametrize(("name", "where", "state"), DIRECT)
def test_a_loss_that_runs_the_memory(name: str, where: str, state: Any) -> None:
    case = CASES[name]
    made, first, batch = collected(where, state, case.discrete)
    # one sequence is the best that it can get
    data = batch[2] if case.flat else batch
    loss = build(case.make, copy_of(made))
    share_memories(loss, made)
    outcome = case.outcomes[where][STATES.index(state)]
    if outcome != EXACT:
        with pytest.raises((KeyError, ValueError, RuntimeError), match=outcome.message):
            run(loss, data)
        return
    terms = run(loss, data)
    heads = heads_of(case, where, state, made)
    share_heads(heads, loss)
    assert_close(terms, run(heads, with_features(made, first, batch)), **STEP)

    # nothing of an episode reaches the next one, nor another sequence
    other, after = perturb(batch)
    changed = run(loss, other)
    moved = 0
    for key in terms.keys() - {MIXED.get(name.partition("(")[0])}:
        change = (terms[key] - changed[key]).abs()
        assert change[:, after].max() <= 1e-6
        moved += int(change[:, ~after].max() > 1e-3)
    assert moved >= 1

    # the loss of each network reaches its memory
    if hasattr(loss, "parameters"):
        for who in ("actor", "critic"):
            names_and_values = [
                entry for entry in memory_parameters(loss, who) if entry[2].requires_grad
            ]
            parameters = [parameter for *_, parameter in names_and_values]
            for gradient in gradients(terms, who, parameters) if parameters else []:
                assert gradient.isfinite().all()
                assert gradient.any()
