"""The commands that a device model gets, in order."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.toolstack.hosts.xen.monitor import Monitor, Start
from xen_save_helper.toolstack.hosts.xen import device_model

pytestmark = pytest.mark.usefixtures("no_leaks")

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def told(start_monitor: Start, monkeypatch: pytest.MonkeyPatch) -> Told:
    """The commands that a device model got; it obeys all of them, and saves `the state`."""
    heard: Told = []

    def serve(monitor: Monitor) -> None:
        monitor.open()
        while (request := monitor.hear_or_end()) is not None:
            heard.append((request["execute"], request.get("arguments", {})))
            if request["execute"] == "xen-save-devices-state":
                (fd,) = monitor.fds
                os.write(fd, b"the state")
                os.close(fd)
            monitor.say({"return": {"fdset-id": 5}, "id": request["id"]})

    path = start_monitor(serve)
    monkeypatch.setattr(device_model, "monitor_path", lambda _domid: path)
    return heard


def test_log_dirty_mode_is_never_turned_off_while_it_is_off(told: Told) -> None:
    """QEMU would abort; turning it on while it is on does nothing."""
    device_model.set_log_dirty(7, False)
    name = "xen-set-global-dirty-log"
    assert told == [(name, {"enable": True}), (name, {"enable": False})]


def test_log_dirty_mode_is_turned_on(told: Told) -> None:
    device_model.set_log_dirty(7, True)
    assert told == [("xen-set-global-dirty-log", {"enable": True})]


@pytest.mark.parametrize("live", [True, False])
def test_it_is_stopped_before_it_saves_its_state(told: Told, live: bool) -> None:
    assert device_model.suspend(7, live) == b"the state"
    assert told == [
        ("stop", {}),
        ("add-fd", {}),
        ("xen-save-devices-state", {"filename": "/dev/fdset/5", "live": live}),
    ]


def test_it_is_resumed(told: Told) -> None:
    device_model.resume(7)
    assert told == [("cont", {})]
