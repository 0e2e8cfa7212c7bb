"""The page "Hyperparameters" has the values of the code."""

from __future__ import annotations

from runpy import run_path

from tests.docs.test_code_blocks import ROOT
from torchrl_shm.configs import TUNED

SCRIPT = ROOT / "docs" / "pictures" / "hyperparameters.py"


def test_tables_are_those_of_the_code() -> None:
    tables = run_path(str(SCRIPT))["make_tables"]()
    command = f"run PYTHONPATH=. python {SCRIPT.relative_to(ROOT)}"
    assert SCRIPT.with_suffix(".md").read_text() == tables, command


def test_every_value_is_explained() -> None:
    rows = SCRIPT.with_suffix(".md").read_text().splitlines()
    assert not [row for row in rows if row.startswith("| `") and row.endswith("|  |")]


def test_levels_are_merged_only_where_all_are_there() -> None:
    merge = run_path(str(SCRIPT))["merge_levels"]
    names = [f"popgym_autoencode_{level}" for level in ("easy", "medium", "hard")]
    assert merge([*names, "wind"]) == ["`popgym_autoencode_*`", "`wind`"]
    assert merge(names[:2]) == [f"`{name}`" for name in names[:2]]
    everything = [name for name in TUNED["grpo"] if name.startswith("popgym_")]
    assert merge(everything) == ["`popgym_*`"]
    assert merge(["popgym/AutoencodeEasy"]) == ["`popgym/<Name><Level>`"]
