"""The page "Which loss, which state" says what the tests of the losses check."""

from __future__ import annotations

import re
from runpy import run_path

import pytest
import torchrl.objectives
from torchrl.objectives import value

from tests.docs.test_code_blocks import ROOT
from tests.modules._loss_table import CASES, DETACHED, Refused

SCRIPT = ROOT / "docs" / "pictures" / "losses.py"
PAGE = (ROOT / "docs" / "concepts" / "losses.md").read_text()
# several agents in one environment, or no memory of this kind in them
OTHERS = {
    "ACTLoss", "DTLoss", "DiffusionBCLoss", "DreamerActorLoss", "DreamerModelLoss",
    "DreamerV3ActorLoss", "DreamerV3Loss", "DreamerV3ModelLoss", "DreamerV3ValueLoss",
    "DreamerValueLoss", "GAILLoss", "IPPOLoss", "MAPPOLoss", "OnlineDTLoss",
    "QMixerLoss", "RNDLoss", "WorldModelLoss",
    "MultiAgentGAE", "ValueEstimatorBase",
}  # fmt: skip


def test_the_table_is_made_from_that_of_the_tests() -> None:
    table = run_path(str(SCRIPT))["make_table"]()
    command = f"run PYTHONPATH=. python {SCRIPT.relative_to(ROOT)}"
    assert SCRIPT.with_suffix(".md").read_text() == table, command


def test_every_loss_of_torchrl_is_in_the_table() -> None:
    """Or is known to be none for a memory; a new version may bring others."""
    losses = {name for name in torchrl.objectives.__all__ if name.endswith("Loss")}
    # "Estimate" is the former name of each "Estimator"
    estimators = {name for name in value.__all__ if not name.endswith("Estimate")}
    listed = {re.split(r"[ (]", name)[0] for name in CASES}
    assert listed.isdisjoint(OTHERS)
    assert losses | estimators == listed | OTHERS


@pytest.mark.parametrize("reason", ["next", "flat", "vmap", "keys", "steps", "detached"])
def test_reasons_are_explained(reason: str) -> None:
    outcomes = [x for case in CASES.values() for triple in case.outcomes.values() for x in triple]
    found = {outcome.reason for outcome in outcomes if isinstance(outcome, Refused)}
    found |= {case.unrolled for case in CASES.values()} & {DETACHED}
    assert reason in found
    assert f"{{ #{reason} }}" in PAGE
    assert re.findall(r"\{ #(\w+) \}", PAGE).count(reason) == 1
