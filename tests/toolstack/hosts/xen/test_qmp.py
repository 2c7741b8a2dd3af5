"""The QMP client, against a server in QEMU's place that behaves well or badly."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.toolstack.hosts.xen.monitor import Monitor, Start
from xen_save_helper.toolstack.hosts.xen.qmp import Qmp, QmpError

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_commands_with_events_between(start_monitor: Start) -> None:
    heard = []

    def serve(monitor: Monitor) -> None:
        monitor.open()
        monitor.say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
        request = monitor.hear()
        heard.append((request["execute"], request.get("arguments")))
        monitor.say({"return": {"fdset-id": 3}, "id": request["id"]})

    with Qmp(start_monitor(serve), timeout=5) as qmp:
        answer = qmp.execute("xen-set-global-dirty-log", enable=True)
    assert answer == {"fdset-id": 3}
    assert heard == [("xen-set-global-dirty-log", {"enable": True})]


def test_a_descriptor_goes_with_its_command(start_monitor: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        request = monitor.hear()
        (fd,) = monitor.fds
        os.write(fd, b"state")
        os.close(fd)
        monitor.say({"return": {}, "id": request["id"]})

    reader, writer = os.pipe()
    with Qmp(start_monitor(serve), timeout=5) as qmp:
        qmp.execute("add-fd", writer)
    os.close(writer)
    assert os.read(reader, 100) == b"state"
    os.close(reader)


def test_a_refusal_says_why(start_monitor: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        error = {"class": "CommandNotFound", "desc": "The command stop has not been found"}
        monitor.say({"error": error, "id": monitor.hear()["id"]})

    with (
        Qmp(start_monitor(serve), timeout=5) as qmp,
        pytest.raises(QmpError, match="not been found") as no,
    ):
        qmp.execute("stop")
    assert no.value.errno == errno.EIO


def test_the_wait_for_a_device_model_that_serves_another_client_has_a_limit(
    start_monitor: Start,
) -> None:
    over = threading.Event()

    def serve(_monitor: Monitor) -> None:
        assert over.wait(5)

    with pytest.raises(TimeoutError, match=r"its greeting for 0.2 s"):
        Qmp(start_monitor(serve), timeout=0.2)
    over.set()


@pytest.mark.parametrize("greeting", [{"return": {}}, [], "text"])
def test_a_bad_greeting_is_refused(start_monitor: Start, greeting: object) -> None:
    with pytest.raises(QmpError) as no:
        Qmp(start_monitor(lambda monitor: monitor.say(greeting)), timeout=5)
    assert no.value.errno == errno.EPROTO


def test_its_end_is_reported_at_once(start_monitor: Start) -> None:
    def serve(monitor: Monitor) -> None:
        monitor.open()
        monitor.hear()

    with (
        Qmp(start_monitor(serve), timeout=5) as qmp,
        pytest.raises(ConnectionResetError, match="at stop"),
    ):
        qmp.execute("stop")


def test_the_error_names_the_missing_device_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no device model at {tmp_path}/none"):
        Qmp(str(tmp_path / "none"))
