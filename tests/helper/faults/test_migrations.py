"""Both helpers of a migration with plans: what the library says, and where the guest is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import trace_lines
from tests.conftest import HostFactory
from tests.toolstack.two_hosts import Side, live_migrate, run
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.operations.save import PostcopyTransitioned
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

pytestmark = pytest.mark.usefixtures("no_leaks")

MEMORY = 4 << 20
NEVER, _FAILED, DONE = PostcopyTransitioned
LIMITS = {"stopped": 0.5, "callback": 2.0, "abort": 1.0, "stream_stall": 2.0, "suspend": 4.0}


class Migration:
    """One migration of a guest under a plan."""

    def __init__(self, source: Side, destination: Side, events: Path) -> None:
        self.source = source
        self.destination = destination
        self.domid = source.host.create_guest("g", MEMORY, "random")
        self.events = events
        for side in (source, destination):
            side.limited(**LIMITS)

    def run(self, *, postcopy: bool) -> None:
        strategy = MemoryStrategy.POSTCOPY if postcopy else MemoryStrategy.DEFAULT
        self.saved, self.restored = run(
            live_migrate(
                self.source,
                self.destination,
                self.domid,
                strategy,
                precopy=PrecopyLimits(0, 0 if postcopy else 1),
            )
        )

    def fired(self) -> list[dict[str, Any]]:
        events = trace_lines.read(self.events)
        return [event["fault"] for event in events if event["event"] == "fault"]

    @property
    def arrived(self) -> bool:
        """The guest runs at the destination, and is right there."""
        row = self.destination.row()
        assert row is not None
        self.destination.host.unpause(row.domid)
        report = self.destination.host.verify(row.domid, 30)
        return report.state is GuestState.RUNNING and report.memory_ok


@pytest.fixture
def migration(
    host_factory: HostFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Migration:
    monkeypatch.setenv("XEN_SAVE_HELPER_EVENTS", str(tmp_path / "events"))
    source, destination = Side(host_factory("source")), Side(host_factory("destination"))
    return Migration(source, destination, tmp_path / "events")


@pytest.mark.parametrize("postcopy", [False, True])
def test_streams_that_are_relayed_arrive(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, postcopy: bool
) -> None:
    plan = "stream@0=stall(0.1); stream@70000=delay(0.1)" + "; back@0=stall(0.1)" * postcopy
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    migration.run(postcopy=postcopy)
    assert (migration.saved.rc, migration.restored.rc) == (0, 0)
    assert migration.saved.postcopy_transitioned is (DONE if postcopy else NEVER)
    assert len(migration.fired()) == (6 if postcopy else 4)
    assert migration.arrived


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("destination/hello:before-send=kill", "killed by signal 9"),
        ("static_data_done:before-answer=answer(1)", "static_data_done callback failed"),
        ("record.libxc.HVM_CONTEXT:read=reset", "Connection reset by peer"),
        ("record.libxc.HVM_CONTEXT:read=cut", "the stream ends"),
        ("record.libxc.X86_TSC_INFO:read=garbage", "X86_TSC_INFO"),
        ("record.libxc.HVM_CONTEXT:write=drop", "HVM_CONTEXT"),
        ("record.libxc.END:write=wrong-number", "unknown mandatory type 0x7fffff00"),
        ("record.libxc.PAGE_DATA:write=truncate", "at offset"),
        ("record.libxc.PAGE_DATA:read#2=stall", "the stream stands still"),
        ("phase.memory-and-state=fail(EIO)", "fault: phase.memory-and-state=fail(EIO)"),
        ("restore_results:before-send=kill", "killed by signal 9"),
    ],
)
def test_a_restore_that_fails(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, plan: str, words: str
) -> None:
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    migration.run(postcopy=False)
    assert migration.restored.rc == Error.FAIL
    assert words in migration.restored.reason
    assert migration.fired() == [plan]
    assert migration.destination.row() is None
    migration.source.at_rest(migration.domid)


@pytest.mark.parametrize("moment", ["write", "read"])
def test_a_list_ahead_that_is_lost(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The source waits in vain for the receiver, and its guest is not even suspended."""
    plan = f"record.libxc.POSTCOPY_PFNS:{moment}=drop"
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    migration.run(postcopy=True)
    assert migration.saved.rc == Error.GUEST_TIMEDOUT, "as libxl says of a guest that was not asked"
    assert "waiting for POSTCOPY_READY" in migration.saved.reason
    assert migration.saved.postcopy_transitioned is NEVER
    assert migration.fired() == [plan]
    assert migration.destination.row() is None
    migration.source.at_rest(migration.domid)


# Twice POSTCOPY_READY comes before the transition.
AFTER = [
    ("destination/postcopy_transition:before-answer=kill", "", "killed by signal 9"),
    ("record.libxc.POSTCOPY_COMPLETE:write=drop", "waiting for POSTCOPY_COMPLETE", ""),
    ("record.libxc.POSTCOPY_COMPLETE:read=stall", "waiting for POSTCOPY_COMPLETE", ""),
    ("record.libxc.POSTCOPY_PAGE_DATA:write=drop", "waiting for POSTCOPY_COMPLETE", ""),
    ("record.libxc.POSTCOPY_PAGE_DATA:read#2=cut", "", "the stream ends"),
    ("source/back@16=cut", "the receiver closed it before POSTCOPY_COMPLETE", ""),
    # Either side sees its stream or its back channel end first, as it happens.
    ("destination/back@16=reset", "", ""),
    (
        "source/postcopy_transition:after-answer=kill",
        "killed by signal 9",
        "the stream ends|Broken pipe|Connection reset",
    ),
]


@pytest.mark.parametrize(("plan", "here", "there"), AFTER)
def test_a_failure_after_the_transition(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, plan: str, here: str, there: str
) -> None:
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    migration.run(postcopy=True)
    assert migration.saved.rc == Error.FAIL
    assert migration.saved.postcopy_transitioned is DONE
    assert re.search(here, migration.saved.reason)
    assert re.search(there, migration.restored.reason)
    assert migration.fired() == [plan]
    row = migration.source.row()
    assert row is not None
    assert (row.state, row.log_dirty) == (GuestState.SUSPENDED, False)
