"""Every example in a docstring of the package runs and shows what it says."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests._night import at_night

ROOT = Path(__file__).parents[2]
OPTIONAL = {"gymnasium", "popgym", "triton"}
FILES = sorted((ROOT / "torchrl_shm").rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sections_are_called_examples(path: Path) -> None:
    """The site shows code below `Examples:` and broken quotations below `Example:`."""
    assert not re.search(r"^ *Example:$", path.read_text(), re.M)


@pytest.mark.parametrize(
    "name",
    # an ONNX file takes seconds
    at_night(MODULES, unless=lambda name: not name.endswith("onnx_file")),
)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith("onnx_file"):
        pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{error.name} is not installed")
        raise
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0
