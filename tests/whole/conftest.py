from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CalmHost, HostFactory, hosts_in


@pytest.fixture
def host_factory(tmp_path: Path) -> Iterator[HostFactory]:
    with hosts_in(tmp_path, CalmHost) as make:
        yield make
