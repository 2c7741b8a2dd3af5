"""The QMP client, against a server that speaks as QEMU does, well and badly."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helper.hypervisors.xen.qmp import Qmp, QmpError
from tests.helper.hypervisors_xen.scripted_server import serving

pytestmark = pytest.mark.usefixtures("no_leaks")

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}


class Monitor:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.fds: list[int] = []

    def say(self, message: object) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def hear(self) -> dict[str, Any]:
        data, fds, _, _ = socket.recv_fds(self._connection, 65536, 1)
        self.fds += fds
        request: dict[str, Any] = json.loads(data)
        return request

    def open(self) -> None:
        """The greeting, and the negotiation that every client begins with."""
        self.say(GREETING)
        request = self.hear()
        assert request["execute"] == "qmp_capabilities"
        self.say({"return": {}, "id": request["id"]})


Start = Callable[[Callable[[Monitor], None]], str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running = []

    def start(serve: Callable[[Monitor], None]) -> str:
        path = tmp_path / "qmp"
        server = serving(path, lambda connection: serve(Monitor(connection)))
        server.__enter__()
        running.append(server)
        return str(path)

    yield start
    for server in running:
        server.__exit__(None, None, None)


def test_commands_with_events_between(start: Start) -> None:
    heard = []

    def serve(monitor: Monitor) -> None:
        monitor.open()
        monitor.say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
        request = monitor.hear()
        heard.append((request["execute"], request.get("arguments")))
        monitor.say({"return": {"fdset-id": 3}, "id": request["id"]})

    with Qmp(start(serve), timeout=5) as qmp:
        answer = qmp.execute("xen-set-global-dirty-log", enable=True)
    assert answer == {"fdset-id": 3}
    assert heard == [("xen-set-global-dirty-log", {"enable": True})]


def test_a_descriptor_goes_with_its_command(start: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        request = monitor.hear()
        (fd,) = monitor.fds
        os.write(fd, b"state")
        os.close(fd)
        monitor.say({"return": {}, "id": request["id"]})

    reader, writer = os.pipe()
    with Qmp(start(serve), timeout=5) as qmp:
        qmp.execute("add-fd", writer)
    os.close(writer)
    assert os.read(reader, 100) == b"state"
    os.close(reader)


def test_a_refusal_says_why(start: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        error = {"class": "CommandNotFound", "desc": "The command stop has not been found"}
        monitor.say({"error": error, "id": monitor.hear()["id"]})

    with Qmp(start(serve), timeout=5) as qmp, pytest.raises(QmpError, match="not been found") as no:
        qmp.execute("stop")
    assert no.value.errno == errno.EIO


def test_a_device_model_that_serves_another_client_is_not_waited_for_without_end(
    start: Start,
) -> None:
    over = threading.Event()

    def serve(_monitor: Monitor) -> None:
        assert over.wait(5)

    with pytest.raises(TimeoutError, match=r"its greeting for 0.2 s"):
        Qmp(start(serve), timeout=0.2)
    over.set()


@pytest.mark.parametrize("greeting", [{"return": {}}, [], "text"])
def test_what_is_no_qmp_is_refused(start: Start, greeting: object) -> None:
    with pytest.raises(QmpError) as no:
        Qmp(start(lambda monitor: monitor.say(greeting)), timeout=5)
    assert no.value.errno == errno.EPROTO


def test_its_end_is_told_at_once(start: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        monitor.hear()

    with Qmp(start(serve), timeout=5) as qmp, pytest.raises(ConnectionResetError, match="at stop"):
        qmp.execute("stop")


def test_no_device_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no device model at {tmp_path}/none"):
        Qmp(str(tmp_path / "none"))
