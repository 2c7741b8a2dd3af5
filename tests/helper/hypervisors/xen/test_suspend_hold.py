"""What a domain is asked for, where xenstored's messages come at unlucky moments."""

from __future__ import annotations

import contextlib
import select
import threading
from pathlib import Path

import pytest

from tests.toolstack.hosts.xen.scripted_server import serving
from tests.toolstack.hosts.xen.test_xenstore import (
    ERROR,
    GET_PERMS,
    READ,
    SET_PERMS,
    WATCH,
    Daemon,
)
from xen_save_helper.helper.hypervisors.xen.suspend_hold import XenSuspendHold

NODE = b"/local/domain/7/control/shutdown"


def _held(daemon: Daemon) -> None:
    for kind, answer in ((GET_PERMS, b"n7\0"), (SET_PERMS, b"OK\0"), (WATCH, b"OK\0")):
        assert daemon.hear()[0] == kind
        daemon.say(kind, answer)


def test_a_request_that_comes_with_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event was read with the answer, so nothing more makes the descriptor readable."""
    over = threading.Event()

    def serve(daemon: Daemon) -> None:
        _held(daemon)
        assert daemon.hear() == (READ, 0, NODE + b"\0")
        daemon.fires(NODE, b"asked")
        daemon.say(READ, b"")
        daemon.hear()
        daemon.say(READ, b"suspend")
        assert over.wait(5)

    path = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    with serving(path, lambda connection: serve(Daemon(connection))):
        hold = XenSuspendHold(7)
        with contextlib.closing(hold):
            assert hold.asked() == "suspend"
            assert not select.select([hold.fileno()], [], [], 0)[0]
            over.set()


def test_a_domain_that_is_gone_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    with serving(path, lambda connection: _held(Daemon(connection))):
        hold = XenSuspendHold(7)

    def serve(daemon: Daemon) -> None:
        for _ in range(2):
            daemon.hear()
            daemon.say(ERROR, b"ENOENT\0")

    path.unlink()
    with serving(path, lambda connection: serve(Daemon(connection))), contextlib.closing(hold):
        assert hold.let_through() == ""
