"""Members that a test adds are gone after it."""

from collections.abc import Iterator

import pytest

from torchrl_shm.configs.groups import MEMBERS


@pytest.fixture(autouse=True)
def _members() -> Iterator[None]:
    before = dict(MEMBERS)
    yield
    MEMBERS.clear()
    MEMBERS.update(before)
