"""Who imports whom is what docs/pictures/rooms.toml says, and what the docs draw."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
ROOMS = tomllib.loads((PICTURES / "rooms.toml").read_text())
FILES = sorted([*(ROOT / "torchrl_shm").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])


def room_of(path: Path) -> str:
    """A folder of the package, a file beside them, or `recipes`."""
    first, *rest = path.relative_to(ROOT).parts
    return rest[0].removesuffix(".py") if first == "torchrl_shm" else first


def imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that are imported at any depth, and whether a function does it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} is a relative import"
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        else:
            inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imports(node, lazy=inside)


def found(room: str) -> dict[str, set[str]]:
    ours: dict[str, set[bool]] = {}
    others: set[str] = set()
    for path in FILES:
        if room_of(path) != room:
            continue
        for name, lazy in imports(ast.parse(path.read_text(), path)):
            package, _, rest = name.partition(".")
            if package == "torchrl_shm":
                ours.setdefault(rest.partition(".")[0], set()).add(lazy)
            elif package not in sys.stdlib_module_names:
                others.add(package)
    ours.pop(room, None)
    lazily = {name for name, ways in ours.items() if ways == {True}}
    return {"ours": set(ours), "lazily": lazily, "others": others}


def test_the_table_has_every_room() -> None:
    assert {room_of(path) for path in FILES} == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_are_those_of_the_table(room: str) -> None:
    declared = {key: set(ROOMS[room].get(key, ())) for key in ("ours", "lazily", "others")}
    assert found(room) == declared


def test_rooms_depend_on_each_other_one_way() -> None:
    """Without the lazy arrows there is an order."""
    arrows = {name: {*room["ours"]} - {*room.get("lazily", ())} for name, room in ROOMS.items()}
    while free := {name for name, ours in arrows.items() if not ours}:
        arrows = {name: ours - free for name, ours in arrows.items() if name not in free}
    assert arrows == {}
    assert "envs" not in ROOMS["modules"]["ours"]
    assert "modules" not in ROOMS["envs"]["ours"]


def test_the_drawing_is_made_from_the_table() -> None:
    draw = run_path(str(PICTURES / "rooms.py"))["draw"]
    assert (PICTURES / "rooms.svg").read_text() == draw(ROOMS), "run python docs/pictures/rooms.py"


def test_the_pages_name_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, room in ROOMS.items():
        place = f"torchrl_shm/{name}" if name != "recipes" else name
        assert "at" not in room or f"| `{place}/` |" in text
