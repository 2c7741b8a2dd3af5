"""Postcopy between two domains of the stand-in: our engine at both ends, and a guest that runs at
the destination while its memory comes, on the hypercalls of a real domain."""

from __future__ import annotations

import errno
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests import xen_structs
from tests.helper.libxl_side import Libxl, cbflags, started
from tests.hypercalls.build import Release
from tests.hypercalls.helpers import DIALECT, Answer, Done, answered, guest
from tests.hypercalls.machine import (
    PAGE,
    PARAM_CONSOLE_PFN,
    PARAM_STORE_PFN,
    SPECIAL_PFNS,
    Domain,
    Kind,
    Machine,
)
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, PrecopyPolicy, XCFlags
from xen_save_helper.ipc_schema.streams.pfns import pfns_of

pytestmark = pytest.mark.usefixtures("restored")

RAM: Final = (range(0xA0), range(0x100, 0x900))
VCPU_INFO: Final = 0x812
ROOTS: Final = {0x8, 0x345}
"""Two vCPUs' page tables."""
VIRIDIAN: Final = {0x20, 0x21}
LEFT: Final = sum(len(pfns) for pfns in RAM) - 1 - len(ROOTS) - len(VIRIDIAN)
"""Pages that are left to postcopy: all but those that Xen does not wait for, and the rings, which
a restore empties."""


@pytest.fixture
def source(machine: Machine) -> Domain:
    domain = guest(machine, 1, RAM)
    domain.write(VCPU_INFO, xen_structs.vcpu_info(), 128)
    domain.context = xen_structs.context(
        *(xen_structs.cpu(number, cr3=pfn * PAGE) for number, pfn in enumerate(sorted(ROOTS))),
        xen_structs.viridian_domain(0x20 * PAGE | 1),
        # A page that the guest does not have, and one that is not enabled.
        xen_structs.viridian_vcpu(0, vp_assist=0x21 * PAGE | 1, simp=1 << 40 | 1),
        xen_structs.viridian_vcpu(1, vp_assist=0x22 * PAGE, simp=0),
    )
    return domain


class Migration:
    """Both helpers at work, and what they have been answered."""

    def __init__(self, release: Release, machine: Machine, source: Domain, events: Path) -> None:
        self._source = source
        self._environment = {
            **release.environment,
            **machine.environment,
            "XEN_SAVE_HELPER_ENGINE": Engine.OWN.value,
            "XEN_SAVE_HELPER_EVENTS": str(events),
        }
        self._events = events
        self._loader = release.loader
        self.policy: Answer = lambda _stats: PrecopyPolicy.POSTCOPY
        self.meanwhile: Callable[[], None] = lambda: None
        """What the guest does between the list that goes ahead and its suspension."""

    def _suspend(self, _fields: dict[str, Any]) -> int:
        self.meanwhile()
        self._source.suspend()
        return 1

    @contextmanager
    def _helper(self, arguments: HelperArguments) -> Iterator[Libxl]:
        with started(arguments, "xen", loader=self._loader, **self._environment) as libxl:
            yield libxl

    def send(self, sock: socket.socket) -> Done:
        names = ("suspend", "switch_qemu_logdirty", "precopy_policy", "postcopy_transition")
        request = HelperRequest(
            Operation.SAVE, 1, sock.fileno(), back_fd=sock.fileno(), xcflags=XCFlags.LIVE
        )
        with self._helper(HelperArguments(request, DIALECT, cbflags(DIALECT, *names))) as libxl:
            sock.close()
            return answered(
                libxl,
                suspend=self._suspend,
                switch_qemu_logdirty=lambda _fields: 0,
                precopy_policy=self.policy,
                postcopy_transition=lambda _fields: 1,
            )

    def receive(self, sock: socket.socket, resumed: Answer) -> Done:
        names = ("restore_results", "postcopy_transition")
        request = HelperRequest(
            Operation.RESTORE,
            2,
            sock.fileno(),
            back_fd=sock.fileno(),
            store_evtchn=11,
            console_evtchn=13,
        )
        with self._helper(HelperArguments(request, DIALECT, cbflags(DIALECT, *names))) as libxl:
            sock.close()
            return answered(
                libxl, restore_results=lambda _fields: None, postcopy_transition=resumed
            )

    def run(self, resumed: Answer) -> tuple[Done, Done]:
        """The sender's end and the receiver's; `resumed` is the receiver's transition."""
        near, far = socket.socketpair()
        with ThreadPoolExecutor(2) as both:
            sent = both.submit(self.send, near)
            received = both.submit(self.receive, far, resumed)
            return sent.result(120), received.result(120)

    def traced(self, name: str) -> list[dict[str, Any]]:
        events = map(json.loads, self._events.read_text().splitlines())
        return [event for event in events if event["event"] == name]


@pytest.fixture
def migration(release: Release, machine: Machine, source: Domain, tmp_path: Path) -> Migration:
    return Migration(release, machine, source, tmp_path / "events")


def read_all(domain: Domain, expected: Domain, pfns: list[int]) -> int:
    """A guest that reads its pages in this order; returns how many it had to wait for."""
    waited = 0
    for pfn in pfns:
        if not domain.access(pfn):
            waited += 1
        assert domain.read(pfn) == expected.page(pfn), f"pfn {pfn:#x}"
    return waited


def test_a_guest_runs_on_while_its_memory_comes(
    machine: Machine, migration: Migration, source: Domain, destination: Domain
) -> None:
    ran: list[Future[int]] = []
    out: list[int] = []
    pfns = [pfn for part in RAM for pfn in part]
    random.Random(4).shuffle(pfns)
    with ThreadPoolExecutor(1) as vcpu:

        def resume(_fields: dict[str, Any]) -> int:
            out.append(destination.state.paged_pages)
            destination.resume()
            ran.append(vcpu.submit(read_all, destination, source, pfns))
            return 1

        sent, received = migration.run(resume)
        assert sent.result == (0, 0), sent.logged
        assert received.result == (0, 0), received.logged
        waited = ran[0].result(60)
    assert out == [LEFT]
    assert 0 < waited <= LEFT
    rings = [source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]]
    assert source.differences(destination) == rings
    assert [destination.page(ring) for ring in rings] == [bytes(PAGE)] * 2
    assert destination.context == source.context
    assert destination.state.repopulated == 0


@pytest.mark.parametrize("written", [False, True])
def test_what_xen_does_not_wait_for_goes_ahead(
    migration: Migration, source: Domain, destination: Domain, written: bool
) -> None:
    """With all of memory left behind, or with what is written while precopy sends it."""
    needed = {VCPU_INFO, *ROOTS, *VIRIDIAN}
    out: list[set[int]] = []
    asked: list[int] = []

    def policy(_stats: dict[str, Any]) -> int:
        asked.append(0)
        if written and len(asked) == 1:
            return PrecopyPolicy.CONTINUE_PRECOPY
        if written:
            source.write(VCPU_INFO, b"written", 1000)
        return PrecopyPolicy.POSTCOPY

    def resume(_fields: dict[str, Any]) -> int:
        out.append(set(destination.pages(Kind.PAGED_OUT).tolist()))
        assert {pfn: destination.page(pfn) for pfn in needed} == {
            pfn: source.page(pfn) for pfn in needed
        }
        destination.resume()
        return 1

    migration.policy = policy
    sent, received = migration.run(resume)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    assert len(out[0]) > 1000
    assert not needed & out[0]
    told = [(one["why"], set(one["pfns"]), one["sent"]) for one in migration.traced("ahead")]
    all_left = not written
    assert told == [
        ("vcpu_info", {VCPU_INFO}, 1),
        ("cr3", ROOTS, len(ROOTS) * all_left),
        ("viridian", {*VIRIDIAN, 1 << 28}, len(VIRIDIAN) * all_left),
    ]


def test_pages_that_the_guest_gives_back_are_not_waited_for(
    migration: Migration, source: Domain, destination: Domain
) -> None:
    gone = range(0x600, 0x700)

    def resume(_fields: dict[str, Any]) -> int:
        destination.resume()
        for pfn in gone:
            if destination.kinds[pfn] == Kind.PAGED_OUT:
                destination.release(pfn)
        return 1

    sent, received = migration.run(resume)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    assert destination.state.paged_pages == 0
    missing = {pfn for pfn in gone if not destination.kinds[pfn]}
    assert missing
    rings = {source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]}
    assert set(source.differences(destination)) == rings | missing


def test_a_guest_that_is_destroyed_while_its_memory_comes(
    migration: Migration, destination: Domain
) -> None:
    def resume(_fields: dict[str, Any]) -> int:
        destination.destroy()
        return 1

    sent, received = migration.run(resume)
    assert received.result == (-1, errno.ESRCH), received.logged
    assert sent.retval == -1


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(errno.ENOSYS, "not built with memory paging"), (errno.EMLINK, "IOMMU")],
)
def test_a_host_that_cannot_page(
    machine: Machine, migration: Migration, destination: Domain, refusal: int, reason: str
) -> None:
    """The guest goes on at its source: it never ran here."""
    machine.fail("XEN_VM_EVENT_ENABLE", refusal)
    resumed = threading.Event()

    def resume(_fields: dict[str, Any]) -> int:
        resumed.set()
        return 1

    sent, received = migration.run(resume)
    assert received.result == (-1, refusal)
    assert any(reason in line for line in received.logged)
    assert sent.retval == -1
    assert not resumed.is_set()


def test_pages_that_are_given_back_after_they_were_listed(
    migration: Migration, source: Domain, destination: Domain
) -> None:
    """All memory is listed while the guest runs; then it gives some back."""
    gone = RAM[1][0x20:0x23]
    migration.meanwhile = lambda: source.set_kind(pfns_of(gone), Kind.HOLE)

    def resume(_fields: dict[str, Any]) -> int:
        destination.resume()
        return 1

    sent, received = migration.run(resume)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    # A page that is gone could not be sent.
    (ahead,) = (event["pages"] for event in migration.traced("postcopy_pfns_ahead"))
    (left,) = (event["pages"] for event in migration.traced("postcopy_pfns"))
    assert left <= ahead - len(gone)
    rings = [source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]]
    assert set(source.differences(destination)) <= {*gone, *rings}
    assert not set(destination.memory[list(gone)].ravel().tolist()) - {0}


def test_a_ring_that_was_part_of_the_guest(
    migration: Migration, source: Domain, destination: Domain
) -> None:
    """Its page came ahead, and is among those that are left behind, too: here it is not the guest's
    any more."""
    ring = SPECIAL_PFNS
    source.set_kind([ring])
    asked: list[int] = []

    def policy(_stats: dict[str, Any]) -> int:
        asked.append(0)
        if len(asked) == 1:
            return PrecopyPolicy.CONTINUE_PRECOPY
        source.fill([ring], 1)
        return PrecopyPolicy.POSTCOPY

    def resume(_fields: dict[str, Any]) -> int:
        destination.resume()
        return 1

    migration.policy = policy
    sent, received = migration.run(resume)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    rings = [source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]]
    assert set(source.differences(destination)) == {ring, *rings}
