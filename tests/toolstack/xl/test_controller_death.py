"""The helper outlives its controller only for as long as its error path takes."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from tests.toolstack.helpers.running_helpers import Run, run_helper
from tests.waiting import until_blocked
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.helpers.request import OwnHelper
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits

MEMORY = 8 << 20
SOON = 20
"""Seconds that an end may take on a machine with much else to do."""


@pytest.fixture
def unread_stream() -> Iterator[socket.socket]:
    """The sending end of a stream that nobody reads."""
    near, far = socket.socketpair()
    with near, far:
        yield near


@dataclass
class Saving:
    """A save that is blocked in a stream that nobody reads."""

    controller: subprocess.Popen[str]
    helper: psutil.Process


@pytest.fixture
def saving(
    host: SimulatedHost, unread_stream: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Saving]:
    domid = host.create_guest("g", MEMORY, "random")
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        stream = unread_stream.fileno()
        arguments = [str(host.directory), str(domid), str(stream)]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.toolstack.xl.controller_process", *arguments],
            stdout=subprocess.PIPE,
            pass_fds=[stream],
            text=True,
        ) as controller:
            assert controller.stdout is not None
            helper = psutil.Process(int(controller.stdout.readline()))
            assert controller.stdout.readline() == "switch_qemu_logdirty\n"
            until_blocked(unread_stream)
            try:
                yield Saving(controller, helper)
            finally:
                controller.kill()
        assert os.listdir(directory) == []
    (row,) = host.domains()
    assert row.state is GuestState.RUNNING
    assert not own_log_dirty(host, domid)
    assert host.verify(domid, 20).memory_ok


def own_log_dirty(host: SimulatedHost, domid: int) -> bool:
    """Whether the domain's own log-dirty mode is on. The device model's is the controller's to
    switch, and after its death `recover`'s."""
    domain = open_on_host(host.directory, domid)
    try:
        domain.logdirty_enable()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True
    else:
        domain.logdirty_off()
        return False
    finally:
        domain.close()


def test_a_killed_controllers_helper_ends_itself(saving: Saving) -> None:
    saving.controller.kill()
    saving.helper.wait(SOON)


def test_a_killed_controllers_stopped_helper_goes_on_and_ends_itself(saving: Saving) -> None:
    saving.helper.suspend()
    saving.controller.kill()
    saving.helper.wait(SOON)


def test_a_stopped_controllers_helper_ends_itself_when_that_is_killed(saving: Saving) -> None:
    saving.controller.send_signal(signal.SIGSTOP)
    saving.controller.kill()
    saving.helper.wait(SOON)


def test_the_terminals_interrupt_is_the_controllers(saving: Saving) -> None:
    """^C goes to the foreground process group, which the helper is not in."""
    assert os.getpgid(saving.helper.pid) != os.getpgid(saving.controller.pid)
    saving.controller.send_signal(signal.SIGINT)
    saving.helper.wait(SOON)


@pytest.mark.usefixtures("runtime_directory")
def test_an_abort_ends_a_write_that_nobody_reads(
    host: SimulatedHost, unread_stream: socket.socket
) -> None:
    domid = host.create_guest("g", MEMORY, "random")
    request = HelperRequest(
        Operation.SAVE,
        domid,
        unread_stream.fileno(),
        xcflags=XCFlags.LIVE,
        hypervisor=f"sim:{host.directory}",
    )
    enabled: list[int] = []
    times: list[float] = []

    def switch(run: Run) -> None:
        enabled.append(run.heard[-1][1]["enable"])
        host.switch_qemu_logdirty(domid, bool(enabled[-1]))
        run.helper.async_callback_done(0)
        if enabled[-1]:
            abort(run)

    def abort(run: Run) -> None:
        if select.select([], [unread_stream], [], 0)[1]:
            # The loop answers the helper until the stream is full.
            run.helper._loop.call_later(0.005, abort, run)
            return
        times.append(run.helper._loop.time())
        run.helper.abort(Error.ABORTED, "on request")

    run = run_helper(
        OwnHelper(), {"switch_qemu_logdirty": switch}, request=request, limits=Limits()
    )
    assert run.result is not None
    assert (run.result.rc, run.result.retval, run.result.completed) == (Error.ABORTED, -1, True)
    assert enabled == [1, 0]
    (row,) = host.domains()
    assert not row.log_dirty
