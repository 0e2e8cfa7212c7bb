"""What the package offers, what it says it offers, and what the reference pages list agree."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import torchrl_shm

ROOT = Path(__file__).parents[1]
ROOMS = [
    "configs", "envs", "envs.popgym", "figures", "modules", "networks", "ops", "sharing",
    "training",
]  # fmt: skip


def load(package: str) -> ModuleType:
    return importlib.import_module(package)


def constants_classes_functions(name: str) -> tuple[bool, bool, str]:
    """The order in which ruff sorts names."""
    return not name.isupper(), not name[0].isupper(), name


def documented() -> list[str]:
    """Names that stand after `:::` on the reference pages."""
    pages = sorted((ROOT / "docs" / "reference").rglob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]


@pytest.mark.parametrize("package", ["torchrl_shm", *(f"torchrl_shm.{room}" for room in ROOMS)])
def test_all_is_sorted_and_resolves(package: str) -> None:
    module = load(package)
    assert module.__all__ == sorted(set(module.__all__), key=constants_classes_functions)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{package}.{name} has no docstring"


def test_all_is_static() -> None:
    """Tools that read the source see every name, although names are loaded when first used."""
    tree = ast.parse(Path(torchrl_shm.__file__).read_text())
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torchrl_shm.")
        for alias in node.names
    }
    assert imported == torchrl_shm._HOMES
    assert {*imported, "__version__"} == set(torchrl_shm.__all__)
    assert set(dir(torchrl_shm)) == set(torchrl_shm.__all__)


@pytest.mark.parametrize("name", [name for name in torchrl_shm.__all__ if name != "__version__"])
def test_names_of_the_package_are_names_of_a_room(name: str) -> None:
    room = load(torchrl_shm._HOMES[name])
    assert name in room.__all__
    assert getattr(torchrl_shm, name) is getattr(room, name)


def test_unknown_name_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shm_scam'"):
        torchrl_shm.shm_scam  # noqa: B018


def test_version_is_that_of_the_installed_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", torchrl_shm.__version__)


def test_reference_lists_every_public_name_once() -> None:
    """Under the name that is shortest to import: `torchrl_shm.SHM`, `torchrl_shm.ops.Backend`."""
    expected = {
        f"torchrl_shm.{name}" if name in torchrl_shm.__all__ else f"torchrl_shm.{room}.{name}"
        for room in ROOMS
        for name in load(f"torchrl_shm.{room}").__all__
    }
    listed = documented()
    assert len(listed) == len(set(listed)), "a name is listed twice"
    assert set(listed) == expected
