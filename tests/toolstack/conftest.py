from __future__ import annotations

import pytest

from tests.conftest import HostFactory
from tests.toolstack.stage import Hosts


@pytest.fixture
def hosts(host_factory: HostFactory) -> Hosts:
    return Hosts(host_factory("source"), host_factory("destination"))
