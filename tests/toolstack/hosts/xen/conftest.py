from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolstack.hosts.xen.monitor import Monitor, Serve, Start
from tests.toolstack.hosts.xen.scripted_server import serving


@pytest.fixture
def start_monitor(tmp_path: Path) -> Iterator[Start]:
    """Start servers in place of QEMU's monitor, which end with the test."""
    running = []

    def start(serve: Serve) -> str:
        path = tmp_path / "qmp"
        server = serving(path, lambda connection: serve(Monitor(connection)))
        server.__enter__()
        running.append(server)
        return str(path)

    yield start
    for server in running:
        server.__exit__(None, None, None)
