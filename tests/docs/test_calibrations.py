"""How soon calibrations have learned is what the curves say."""

from __future__ import annotations

import csv
from runpy import run_path

from tests.docs.test_code_blocks import ROOT

SCRIPT = ROOT / "docs" / "pictures" / "calibrations.py"


def test_the_table_of_calibrations_is_that_of_the_curves() -> None:
    script = run_path(str(SCRIPT))
    made = [{key: str(x) for key, x in row.items()} for row in script["make_rows"]()]
    with open(script["TARGET"], newline="") as file:
        assert list(csv.DictReader(file)) == made, f"run PYTHONPATH=. python {SCRIPT.name}"
