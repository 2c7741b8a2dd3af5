"""What tests of streams begin with."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from xen_save_helper.helper.abort import Abort


@pytest.fixture
def abort() -> Iterator[Abort]:
    with Abort(signals=frozenset()) as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far
