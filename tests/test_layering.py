"""Data flows one way: recipes -> configs -> training -> {modules, envs} -> ops."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# what each room may import: rooms of ours, then packages of others
ROOMS = {
    "ops": (set(), {"torch", "triton", "numba", "numpy"}),
    "modules": ({"ops"}, {"torch", "tensordict", "torchrl"}),
    "envs": ({"ops"}, {"torch", "tensordict", "torchrl", "numpy", "gymnasium", "popgym"}),
    "training": (
        {"ops", "modules", "envs"},
        {
            "torch",
            "tensordict",
            "torchrl",
            "numpy",
            "matplotlib",
            "PIL",
            "tqdm",
            "tensorboard",
            "wandb",
        },
    ),
    "configs": (
        {"ops", "modules", "envs", "training"},
        {
            "torch",
            "tensordict",
            "torchrl",
            "hydra",
            "hydra_zen",
            "omegaconf",
            "pydantic",
            "safetensors",
        },
    ),
}
FILES = sorted((ROOT / "torchrl_shm").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} is a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_folder_is_a_room_that_this_test_knows() -> None:
    folders = {path.parent.name for path in (ROOT / "torchrl_shm").glob("*/*.py")}
    assert folders <= ROOMS.keys()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_package_imports_follow_the_arrows(path: Path) -> None:
    room = path.relative_to(ROOT / "torchrl_shm").parts[0]
    if room == "__init__.py":
        ours, others = set(ROOMS), set()
    else:
        ours, others = ROOMS[room]
        ours = ours | {room}
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if package == "torchrl_shm":
            assert rest.partition(".")[0] in ours, f"{room} must not import {imported}"
        elif package not in sys.stdlib_module_names:
            assert package in others, f"{room} must not import {imported}"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_stand_on_the_package_alone(path: Path) -> None:
    packages = {imported.partition(".")[0] for imported in imports(path)}
    assert not packages & {"recipes", "tests"}, "a recipe is read on its own"
