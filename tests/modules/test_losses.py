"""Every loss with a memory is exact, or says what to do; see the table in `_loss_table.py`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.modules._helpers import STEP
from tests.modules._loss_checks import (
    build,
    collected,
    gradients,
    memory_parameters,
    perturb,
    run,
    share_heads,
    share_memories,
    with_features,
)
from tests.modules._loss_table import CASES, EXACT, Case
from tests.modules._losses import Parts
from torchrl_shm import unroll

STATES: list[Any] = ["lean", "stored", "zero"]
# what a loss averages over the batch depends on all steps
MIXED = {"TD3BCLoss": "loss_actor", "CQLLoss": "loss_cql"}


def is_variant(name: str) -> bool:
    """Whether a case is a loss of the table with an option."""
    return "(" in name or " with " in name


DIRECT = [
    pytest.param(
        name,
        where,
        state,
        id=f"{name}-{where}-{state}",
        # where a memory that is stored is taught, one that starts from zeros is
        marks=pytest.mark.slow
        if is_variant(name) or (state == "zero" and outcomes[2] == EXACT)
        else (),
    )
    for name, case in CASES.items()
    for where, outcomes in case.outcomes.items()
    for state in STATES
]
UNROLLED = [
    # all places of the memory in losses that recipes use, and one of them in the others
    pytest.param(
        name,
        where,
        id=f"{name}-{where}",
        marks=()
        if (where == [*case.outcomes][-1] and not is_variant(name))
        or name in ("ClipPPOLoss", "SACLoss")
        else pytest.mark.slow,
    )
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
    loss = build(case.make, copy.deepcopy(made))
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
    for key in terms.keys() - {MIXED.get(name.split()[0])}:
        change = (terms[key] - changed[key]).abs()
        assert change[:, after].max() <= 1e-6
        moved += int(change[:, ~after].max() > 1e-3)
    assert moved >= 1

    # the loss of each network reaches its memory
    for who in ("actor", "critic"):
        found = [p for *_, p in memory_parameters(loss, who) if p.requires_grad]
        for gradient in gradients(loss, terms, who, found):
            assert gradient.isfinite().all()
            assert gradient.any()


@pytest.mark.parametrize(("name", "where"), UNROLLED)
def test_a_loss_on_features(name: str, where: str) -> None:
    case = CASES[name]
    made, first, batch = collected(where, "stored", case.discrete)
    made = copy.deepcopy(made)
    heads = heads_of(case, where, "stored", made)
    expected = with_features(made, first, batch)
    data = batch
    for memory in made.memories.values():
        data = unroll(memory, data)
    if case.flat:
        expected, data = expected.reshape(-1), data.reshape(-1)
    terms = run(heads, data)
    assert_close(terms, run(heads, expected), **STEP)

    direct: Any = None
    if case.outcomes[where][1] == EXACT:
        direct = build(case.make, copy.deepcopy(made))
        share_memories(direct, made)
        share_heads(direct, heads)
    for memory_name, memory in made.memories.items():
        who = "actor" if "actor" in (memory_name, where) else "critic"
        names, parameters = zip(*memory.cell.named_parameters(), strict=True)
        found = gradients(heads, terms, who, list(parameters))
        for gradient in found:
            assert bool(gradient.any()) == (case.unrolled == EXACT)
        if direct is None or case.unrolled != EXACT:
            continue
        expected = dict.fromkeys(names, torch.zeros(()))
        entries = [x for x in memory_parameters(direct, who) if x[2].requires_grad]
        # networks may share parameters
        entries = list({id(entry[2]): entry for entry in entries}.values())
        values = gradients(direct, run(direct, batch), who, [x[2] for x in entries])
        for (_, key, _), value in zip(entries, values, strict=bool(values)):
            expected[key] = expected[key] + value.reshape(memory.cell.get_parameter(key).shape)
        for key, gradient in zip(names, found, strict=bool(found)):
            assert_close(gradient, expected[key], **STEP)
