"""Parameters of tests of which some run in every check, and the others at night."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def at_night(values: Iterable[T], unless: Callable[[T], bool]) -> list[Any]:
    """Mark values as slow, unless a test of them is to run in every check."""
    return [pytest.param(x, marks=() if unless(x) else pytest.mark.slow) for x in values]
