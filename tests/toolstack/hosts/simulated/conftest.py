from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nursery import own_interpreters


@pytest.fixture(autouse=True)
def _own_interpreters() -> Iterator[None]:
    """Guests here are started as users' are."""
    with own_interpreters():
        yield
