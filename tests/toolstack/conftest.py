from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CalmHost, HostFactory, hosts_in
from tests.toolstack.stage import Hosts


@pytest.fixture
def host_factory(tmp_path: Path) -> Iterator[HostFactory]:
    with hosts_in(tmp_path, CalmHost) as make:
        yield make


@pytest.fixture
def hosts(host_factory: HostFactory) -> Iterator[Hosts]:
    made = Hosts(host_factory("source"), host_factory("destination"))
    yield made
    made.close()


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> Iterator[Path]:
    """Where the endpoints of helpers are made; nothing may be left in it."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
        assert os.listdir(directory) == []
