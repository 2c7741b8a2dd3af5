from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolstack.stage import Hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()
