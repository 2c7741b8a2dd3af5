"""The drop-in, as libxl starts it, seen and steered from another shell."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import trace_lines
from tests.helper.engine.running import suspend
from tests.helper.libxl_side import Libxl, restore_of, save_of, started
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Answer, XCFlags
from xen_save_helper.ipc_schema.control import Ask, Identity, Role
from xen_save_helper.ipc_schema.operation_status import OperationStatus
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

MEMORY = 8 << 20


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


class Steered:
    """The control socket of the helper on a host."""

    def __init__(self, host: SimulatedHost) -> None:
        self.directory = host.directory / "control"
        (self.process,) = wait_for(lambda: control.operations(self.directory), "it can be asked")

    def ask(self, what: Ask, **fields: Any) -> dict[str, Any]:
        return control.ask(self.directory, self.process, what, **fields)

    def status(self) -> OperationStatus:
        return OperationStatus.decode(self.ask(Ask.STATUS))

    def until(self, phase: str, **figures: int) -> OperationStatus:
        def there() -> OperationStatus | None:
            status = self.status()
            right = status.phase == phase
            right = right and all(getattr(status, name) >= figures[name] for name in figures)
            return status if right else None

        status: OperationStatus = wait_for(there, phase)
        return status


@contextmanager
def saving(
    host: SimulatedHost, domid: int, stream: socket.socket, events: Path, **settings: str
) -> Iterator[tuple[Libxl, Steered]]:
    """A live save, past its log-dirty callback."""
    arguments = save_of(stream.fileno(), domid, xcflags=XCFlags.LIVE)
    settings["XEN_SAVE_HELPER_EVENTS"] = str(events)
    with started(arguments, f"sim:{host.directory}", **settings) as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        libxl.answer(0)
        yield libxl, Steered(host)


def answered(libxl: Libxl, host: SimulatedHost, domid: int) -> tuple[int, int]:
    """Answer what libxl answers, to the end: retval and errnoval of `complete`."""
    while True:
        name, fields = libxl.hear()
        if name == "complete":
            libxl.answer(0)
            assert libxl.exit_status() == 0
            return fields["retval"], fields["errnoval"]
        if name == "suspend":
            suspend(host, domid)
            libxl.answer(1)
        elif CATALOGUE[name].answer is not Answer.NONE:
            libxl.answer(0)


def drain(stream: socket.socket) -> int:
    """How many bytes come until it is shut."""
    return sum(map(len, iter(lambda: stream.recv(1 << 20), b"")))


def at_rest(host: SimulatedHost, domid: int) -> None:
    host.resume(domid)
    report = host.verify(domid, 30)
    assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)
    assert not host.domains()[0].log_dirty
    assert list((host.directory / "control").iterdir()) == []


def test_a_live_save_is_cancelled(
    host: SimulatedHost, link: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """Its error path runs; libxl is told that it was cancelled, and the guest runs on."""
    domid = host.create_guest("web", MEMORY, "random", 40)
    with saving(host, domid, link[0], tmp_path / "events") as (libxl, steered):
        assert steered.process == Identity(Role.HELPER_SAVE, domid, "web", libxl.process.pid)
        status = steered.until("precopy", transferred=1)
        assert status.engine == "own"
        assert status.total is not None
        assert status.total >= MEMORY
        wait_for(lambda: "taken nothing" in steered.status().waits_for, "it says who is waited for")
        for way, why in (("postcopy", "not asked for"), ("elsewhere", "want postcopy or")):
            with pytest.raises(OSError, match=why):
                steered.ask(Ask.SWITCH, to=way)
        steered.ask(Ask.CANCEL)
        assert answered(libxl, host, domid) == (-1, errno.ECANCELED)
    lines = trace_lines.read(tmp_path / "events")
    assert [line["ask"] for line in lines if line["event"] == "control"] == ["cancel"]
    at_rest(host, domid)


def test_its_policy_is_changed_and_precopy_ended(
    host: SimulatedHost, link: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    domid = host.create_guest("web", MEMORY, "random", 40)
    near, far = link
    with (
        saving(host, domid, near, tmp_path / "events") as (libxl, steered),
        ThreadPoolExecutor(1) as reader,
    ):
        steered.until("precopy", round_total=1)
        now = steered.ask(Ask.SET, max_rounds=1000, dirty_threshold=0, bandwidth=1 << 20)
        assert (now["max_rounds"], now["bandwidth"]) == (1000, 1 << 20)
        drained = reader.submit(drain, far)
        steered.until("precopy", normal=1)
        steered.ask(Ask.PAUSE_SENDING)
        assert steered.status().paused
        steered.ask(Ask.RESUME_SENDING)
        steered.ask(Ask.SWITCH, to="stop-and-copy")
        steered.ask(Ask.SET, bandwidth=0)
        assert answered(libxl, host, domid) == (0, 0)
        near.shutdown(socket.SHUT_RDWR)
        assert drained.result(30) > MEMORY
    lines = trace_lines.read(tmp_path / "events")
    assert [line["ask"] for line in lines if line["event"] == "control"] == [
        "set", "pause-sending", "resume-sending", "switch", "set",
    ]  # fmt: skip
    last = [line for line in lines if line["event"] == "precopy_policy"][-1]
    assert (last["decision"], last["why"]) == ("STOP_AND_COPY", "asked for while it ran")
    at_rest(host, domid)


def test_a_restore_is_cancelled(
    host: SimulatedHost, link: tuple[socket.socket, socket.socket]
) -> None:
    domid = host.create(host.config(host.create_guest("model", MEMORY, "idle")), "web")
    arguments = restore_of(link[0].fileno(), domid)
    with started(arguments, f"sim:{host.directory}") as libxl:
        steered = Steered(host)
        assert steered.process.role is Role.HELPER_RESTORE
        assert steered.until("headers").domain == "web"
        with pytest.raises(OSError, match="ask at the source"):
            steered.ask(Ask.SET, bandwidth=1)
        steered.ask(Ask.CANCEL)
        retval, errnoval = answered(libxl, host, domid)
        assert (retval, errnoval) == (-1, errno.ECANCELED)
    assert list(steered.directory.iterdir()) == []


def test_without_its_directory_it_goes_on(
    host: SimulatedHost, link: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    domid = host.create_guest("web", MEMORY, "random", 40)
    (host.directory / "control").write_text("in the way")
    arguments = save_of(link[0].fileno(), domid, xcflags=XCFlags.LIVE)
    events = tmp_path / "events"
    settings = {"XEN_SAVE_HELPER_EVENTS": str(events)}
    with started(arguments, f"sim:{host.directory}", **settings) as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        wait_for(lambda: b'"no_control"' in events.read_bytes(), "it says so")
        libxl.answer(0)
        libxl.process.terminate()
        assert answered(libxl, host, domid) == (-1, errno.ECANCELED)
    (host.directory / "control").unlink()
    assert host.verify(domid, 30).state is GuestState.RUNNING
