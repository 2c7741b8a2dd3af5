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


@pytest.fixture(scope="module")
def _unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts_in(tmp_path_factory.mktemp("unharmed"), CalmHost) as make:
        made = Hosts(make("source"), make("destination"))
        made.guest(megabytes=2)
        yield made
        made.close()


@pytest.fixture
def unharmed(_unharmed: Hosts) -> Iterator[Hosts]:
    """Hosts for all tests of a module whose commands are refused: the guest `g` runs on at the
    source after each, and nothing is at the destination."""
    yield _unharmed
    assert _unharmed.states(_unharmed.at_source) == {"g": "running"}
    assert _unharmed.states(_unharmed.at_destination) == {}
    assert _unharmed.journals() == []


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> Iterator[Path]:
    """Where the endpoints of helpers are made; nothing may be left in it."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
        assert os.listdir(directory) == []
