from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import HostFactory
from tests.toolstack.stage import Hosts


@pytest.fixture
def hosts(host_factory: HostFactory) -> Iterator[Hosts]:
    made = Hosts(host_factory("source"), host_factory("destination"))
    yield made
    made.close()
