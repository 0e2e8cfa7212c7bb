"""Every public name is documented: its parameters, the shapes of its tensors, and its errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

griffe = pytest.importorskip("griffe", reason='needs pip install -e ".[docs]"')

ROOMS = ["configs", "envs", "envs.popgym", "modules", "ops", "training"]
CALLERS_FAULT = {"FileNotFoundError", "KeyError", "RuntimeError", "TypeError", "ValueError"}
TENSOR = re.compile(r"^(torch\.)?Tensor( \| None)?$|^tuple\[.*\bTensor\b")
# how a description says the shape of a tensor: `[B, T]`, or one number, or that none is read
SHAPE = re.compile(r"\[[^\]]*\]|scalar|ignored")
# arguments of a framework's own protocol
FRAMEWORK = {"self", "cls", "args", "kwargs"}


@dataclass
class Item:
    """A public callable: how it is called, what its docstring says, and its code."""

    name: str
    parameters: dict[str, inspect.Parameter]
    sections: dict[str, Any]
    code: list[Callable[..., Any]]

    def described(self, kind: str) -> dict[str, str]:
        """Names and descriptions of a section such as `parameters`."""
        section = self.sections.get(kind)
        return {entry.name: entry.description for entry in section.value} if section else {}


def sections(docstring: str | None) -> dict[str, Any]:
    parsed = griffe.Docstring(docstring or "", lineno=1).parse("google", warnings=False)
    return {section.kind.value: section for section in parsed}


def own(thing: type, name: str) -> Callable[..., Any] | None:
    """A method that a class adds: what it overrides is documented where it comes from."""
    method = vars(thing).get(name)
    method = getattr(method, "__func__", method)
    inherited = name != "__init__" and any(name in vars(base) for base in thing.__mro__[1:])
    # dataclasses write methods that have no source
    written = inspect.isfunction(method) and method.__code__.co_filename != "<string>"
    return method if written and not inherited else None


def items() -> Iterator[Item]:
    seen: set[int] = set()
    for room in ROOMS:
        module = importlib.import_module(f"torchrl_shm.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if inspect.isfunction(thing):
                yield item(f"{room}.{name}", thing, thing.__doc__, [thing])
            elif inspect.isclass(thing):
                yield from class_items(f"{room}.{name}", thing)


def item(name: str, signature: Any, docstring: str | None, code: list[Any]) -> Item:
    parameters = dict(inspect.signature(signature).parameters)
    return Item(name, parameters, sections(docstring and inspect.cleandoc(docstring)), code)


def class_items(name: str, thing: type) -> Iterator[Item]:
    built = [own(thing, method) for method in ("__init__", "__post_init__")]
    # methods of a protocol are those of its members
    if getattr(thing, "_is_protocol", False):
        return
    # exceptions are not built by users
    if not issubclass(thing, BaseException):
        # what the constructors of its bases refuse, it refuses, too
        bases = [base for base in thing.__mro__[1:] if base.__module__.startswith("torchrl_shm.")]
        code = [*built, *(own(base, "__init__") for base in bases)]
        if any(code):
            # torchrl's metaclass hides the arguments of environments
            yield item(name, thing.__init__, thing.__doc__, [method for method in code if method])
        elif "__dataclass_fields__" in vars(thing):
            yield item(name, thing, thing.__doc__, [])
    for member in vars(thing):
        method = own(thing, member)
        if method is not None and not member.startswith("_") and method.__doc__:
            yield item(f"{name}.{member}", method, method.__doc__, [method])


ITEMS = {entry.name: entry for entry in items()}


def raised(code: Callable[..., Any], follow: bool = True) -> set[str]:
    """Errors that a function raises, itself or in functions of ours that it calls by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        elif follow and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = code.__globals__.get(node.func.id)
            if inspect.isfunction(called) and called.__module__.startswith("torchrl_shm."):
                found |= raised(called, follow=False)
    return found & CALLERS_FAULT


@pytest.mark.parametrize("name", ITEMS)
def test_every_parameter_is_described(name: str) -> None:
    entry = ITEMS[name]
    described = entry.described("parameters") | entry.described("attributes")
    described = {key.lstrip("*"): text for key, text in described.items()}
    missing = [key for key in entry.parameters if key not in {*described, *FRAMEWORK}]
    assert not missing
    assert all(described.values())


@pytest.mark.parametrize("name", ITEMS)
def test_every_tensor_has_a_shape(name: str) -> None:
    entry = ITEMS[name]
    described = entry.described("parameters") | entry.described("attributes")
    without = [
        key
        for key, parameter in entry.parameters.items()
        if TENSOR.search(str(parameter.annotation))
        and key in described
        and not SHAPE.search(described[key])
    ]
    assert not without
    returns = entry.sections.get("returns")
    annotations = [str(inspect.signature(code).return_annotation) for code in entry.code]
    if returns and any(map(TENSOR.search, annotations)):
        assert SHAPE.search(" ".join(part.description for part in returns.value))


@pytest.mark.parametrize("name", ITEMS)
def test_every_error_is_listed(name: str) -> None:
    entry = ITEMS[name]
    section = entry.sections.get("raises")
    listed = {str(part.annotation) for part in section.value} if section else set()
    assert not set().union(*map(raised, entry.code)) - listed


def test_what_is_missing_would_be_found() -> None:
    def bad(x: int, y: int) -> None:
        """Do it.

        Args:
            x: a number.
        """
        if x:
            raise ValueError("no")

    entry = item("bad", bad, bad.__doc__, [bad])
    assert set(entry.parameters) - set(entry.described("parameters")) == {"y"}
    assert raised(bad) == {"ValueError"}
    assert len(ITEMS) > 100
