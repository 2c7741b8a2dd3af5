"""What only a save's operation can get wrong: whose answer is whose, and bugs."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest

from tests.conftest import HostFactory
from tests.toolstack.helpers.running_helpers import scripted
from tests.toolstack.two_hosts import MEMORY, Side, cancelled, run
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate, domain_suspend
from xen_save_helper.toolstack.operations.save import SaveResult

pytestmark = pytest.mark.usefixtures("no_leaks")


class SlowDeviceModel(SimulatedHost):
    """Its device models turn their log-dirty mode off only a moment after the guest has
    suspended."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        end = time.monotonic() + 10
        while not enable and time.monotonic() < end:
            (row,) = self.domains()
            if row.state is GuestState.SUSPENDED:
                end = min(end, time.monotonic() + 1)
        super().switch_qemu_logdirty(domid, enable)


def test_an_aborted_suspension_does_not_answer_another_callback(host_factory: HostFactory) -> None:
    source = Side(SlowDeviceModel(host_factory("source").directory))
    domid = source.host.create_guest(
        "g", MEMORY, "idle", type="hvm", behaviour=Behaviour.LATE, behaviour_seconds=0.5
    )
    ours, theirs = socket.socketpair()

    async def work() -> SaveResult:
        asyncio.get_running_loop().add_reader(theirs, theirs.recv, 1 << 20)
        ended: list[SaveResult] = []
        task = asyncio.ensure_future(
            domain_live_migrate(
                source.ctx,
                domid,
                ours.fileno(),
                0,
                ours.fileno(),
                precopy=PrecopyLimits(0, 0),
                on_end=ended.append,
            )
        )
        source.happenings.at("suspend_request", task.cancel)
        return await cancelled(task, ended)

    with ours, theirs:
        result = run(work())
    assert result.rc == Error.ABORTED
    events = source.happenings.events
    answers = [(e["name"], e["value"]) for e in events if e["event"] == "answer"]
    assert answers[-3:] == [("suspend", 0), ("switch_qemu_logdirty", 0), ("complete", 0)]
    names = source.happenings.names()
    last_answer = [e for e in events if e.get("name") == "switch_qemu_logdirty"][-1]
    assert names.index("suspend_done") < events.index(last_answer), "this test's premise"
    assert result.suspended
    source.at_rest(domid)


def test_a_helper_that_only_asks_is_ended(host_factory: HostFactory) -> None:
    source = Side(host_factory("source"))
    source.limited(stream_stall=0.5)
    domid = source.host.create_guest("g", MEMORY, "idle")
    ctx = replace(source.ctx, program=scripted("start", "endless_round", "fail"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = run(domain_live_migrate(ctx, domid, ours.fileno(), 0, ours.fileno()))
    assert result.rc == Error.FAIL
    assert "has asked about precopy for 0.5 s and sent no page" in result.reason
    source.at_rest(domid)


def test_a_bug_ends_it_and_is_raised(
    host_factory: HostFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(_helper: SaveHelper) -> None:
        raise LookupError("a bug")

    source = Side(host_factory("source"))
    domid = source.host.create_guest("g", MEMORY, "idle")
    monkeypatch.setattr(SaveHelper, "start", fault)
    with open("/dev/null", "wb") as file, pytest.raises(LookupError, match="a bug"):
        run(domain_suspend(source.ctx, domid, file.fileno()))
    source.at_rest(domid)
