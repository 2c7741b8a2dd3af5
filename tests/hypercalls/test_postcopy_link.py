"""Postcopy under libxl as it is: both helpers end, and the last pages come all the same."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.helper.libxl_side import Libxl, cbflags, started
from tests.hypercalls.build import Release
from tests.hypercalls.conftest import Releases
from tests.hypercalls.helpers import Done, guest, run
from tests.hypercalls.machine import (
    PARAM_CONSOLE_PFN,
    PARAM_STORE_PFN,
    Domain,
    Machine,
)
from tests.hypercalls.xenstored import Guest, Xenstored
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.job import Job
from xen_save_helper.helper.postcopy_link.curve import Keys, TunnelClient
from xen_save_helper.helper.postcopy_link.source import PageServer
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.listen import Listen
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, XCFlags
from xen_save_helper.ipc_schema.streams.pfns import pfns_of

pytestmark = pytest.mark.usefixtures("restored")

RAM: Final = (range(0xA0), range(0x100, 0x900))
WRITTEN: Final = range(0x200, 0x400)
"""What the guest writes while it is saved."""
BOTH: Final = {"XEN_SAVE_HELPER_POSTCOPY": "127.0.0.1"}
ONE_ROUND: Final = {
    "XEN_SAVE_HELPER_MAX_ITERATIONS": "1",
    "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0",
}


@pytest.fixture
def release(releases: Releases) -> Release:
    """Whose libraries any process finds by its environment."""
    return releases("4.17")


class Migration:
    """`xl migrate`, as its two helpers see it."""

    def __init__(self, release: Release, machine: Machine, source: Domain, events: Path) -> None:
        self._source = source
        self.events = events
        self.environment = {
            **release.environment,
            **machine.environment,
            "XEN_SAVE_HELPER_EVENTS": str(events),
            "XEN_SAVE_HELPER_CONTROL": str(events.parent / "control"),
        }
        self.written = WRITTEN
        self.suspends: Callable[[], None] = lambda: None
        """Called when the guest is about to be suspended."""
        self.restored: Callable[[dict[str, Any]], None] = lambda _fields: None
        """Called when the pager is about to leave."""

    @property
    def control(self) -> str:
        return self.environment["XEN_SAVE_HELPER_CONTROL"]

    @contextmanager
    def _helper(self, arguments: HelperArguments, settings: dict[str, str]) -> Iterator[Libxl]:
        with started(arguments, "xen", **self.environment, **settings) as libxl:
            yield libxl

    def _suspend(self, _fields: dict[str, Any]) -> int:
        self.suspends()
        self._source.fill(pfns_of(self.written), version=1)
        self._source.suspend()
        return 1

    def _send(self, sock: socket.socket, settings: dict[str, str]) -> Done:
        request = HelperRequest(Operation.SAVE, 1, sock.fileno(), xcflags=XCFlags.LIVE)
        flags = cbflags(Dialect.MAINLINE, "suspend", "switch_qemu_logdirty")
        arguments = HelperArguments(request, Dialect.MAINLINE, flags)
        with self._helper(arguments, settings) as libxl:
            sock.close()
            return run(libxl, suspend=self._suspend, switch_qemu_logdirty=lambda _fields: 0)

    def _receive(self, sock: socket.socket, settings: dict[str, str]) -> Done:
        request = HelperRequest(
            Operation.RESTORE, 2, sock.fileno(), store_evtchn=11, console_evtchn=13
        )
        flags = cbflags(Dialect.MAINLINE, "restore_results", "static_data_done")
        arguments = HelperArguments(request, Dialect.MAINLINE, flags)
        with self._helper(arguments, settings) as libxl:
            sock.close()
            return run(
                libxl,
                restore_results=self.restored,
                static_data_done=lambda _fields: 0,
            )

    def run(self, sender: dict[str, str], receiver: dict[str, str]) -> tuple[Done, Done]:
        near, far = socket.socketpair()
        with ThreadPoolExecutor(2) as both:
            sent = both.submit(self._send, near, {**ONE_ROUND, **sender})
            received = both.submit(self._receive, far, receiver)
            return sent.result(100), received.result(100)

    def traced(self, name: str) -> list[dict[str, Any]]:
        if not self.events.exists():
            return []
        lines = self.events.read_text().rpartition("\n")[0].splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture
def source(machine: Machine) -> Domain:
    return guest(machine, 1, RAM)


@pytest.fixture
def migration(
    release: Release, machine: Machine, source: Domain, tmp_path: Path
) -> Iterator[Migration]:
    migration = Migration(release, machine, source, tmp_path / "events")
    yield migration
    nothing_is_left(migration.events)


def nothing_is_left(events: Path) -> None:
    """Page servers and pagers end by themselves; what does not is ended."""
    try:
        wait_for(lambda: not left_behind(events), "no page server and no pager", 20)
    finally:
        for process in left_behind(events):
            process.kill()


def left_behind(events: Path) -> list[psutil.Process]:
    """Page servers and pagers with this trace."""
    me = psutil.Process()
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "xen_save_helper.helper" in " ".join(process.info["cmdline"] or ())
        and _environment(process).get("XEN_SAVE_HELPER_EVENTS") == str(events)
        and process.pid != me.pid
    ]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_helpers_end_and_the_last_pages_come(
    machine: Machine, migration: Migration, source: Domain, destination: Domain
) -> None:
    sent, received = migration.run({**BOTH, "XEN_SAVE_HELPER_MAX_DOWNTIME_MS": "70"}, BOTH)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    # Nothing was written twice.
    (told,) = migration.traced("hot_pages")
    assert (told["max_downtime_ms"], told["hot"], told["sent"]) == (70, 0, 0)
    # libxl has been told that all is there. It destroys the one and lets the other run.
    (kept,) = wait_for(lambda: migration.traced("pages_kept"), "the page server goes on alone")
    assert kept["pages"] >= len(WRITTEN)
    expected = {pfn: source.page(pfn) for part in RAM for pfn in part}
    source.destroy()
    destination.resume()
    pfns = list(WRITTEN)
    random.Random(7).shuffle(pfns)
    for pfn in pfns:
        destination.access(pfn)
        assert destination.read(pfn) == expected[pfn], f"pfn {pfn:#x}"
    wait_for(lambda: bool(migration.traced("pages_gone")), "all pages are there", 30)
    assert {pfn: destination.page(pfn) for pfn in expected} == expected


@pytest.mark.parametrize("receiver", [{}, {"XEN_SAVE_HELPER_POSTCOPY": ""}])
def test_a_receiver_that_may_not_makes_it_an_ordinary_migration(
    machine: Machine,
    migration: Migration,
    source: Domain,
    destination: Domain,
    receiver: dict[str, str],
) -> None:
    sent, received = migration.run(BOTH, receiver)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    assert any("no postcopy: the receiver has not connected" in line for line in sent.logged)
    # A restore empties the rings.
    assert not {pfn for part in RAM for pfn in part} & set(source.differences(destination))


def test_a_pager_holds_what_the_guest_is_asked(
    machine: Machine,
    migration: Migration,
    destination: Domain,
    xenstored: Xenstored,
    restored: Guest,
) -> None:
    """From before libxl knows of the guest until its last page is there, long after both helpers
    have ended."""
    out: list[int] = []
    restored.watch(lambda: out.append(destination.state.paged_pages))
    xenstored.write(restored.path, b"suspend")
    sent, received = migration.run(BOTH, BOTH)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    wait_for(lambda: bool(migration.traced("suspend_let_through")), "the guest is asked", 30)
    (kept,) = migration.traced("pages_kept")
    (held,) = migration.traced("suspend_held")
    assert (held["request"], held["missing"]) == ("suspend", kept["pages"])
    assert restored.read() == "suspend"
    # It heard of the watch itself, of the request, that it is hidden, and that it is there.
    assert out == [0, 0, 0, 0]
    assert destination.state.paged_pages == 0


def test_a_guest_that_writes_while_its_pages_are_listed(
    migration: Migration, source: Domain, destination: Domain
) -> None:
    """One page after the other, each of them once: some after the last list that goes ahead."""
    over = threading.Event()

    def write() -> None:
        for pfn in WRITTEN:
            source.fill(pfns_of([pfn]), version=1)
            if over.wait(0.002):
                return

    writer = threading.Thread(target=write)

    def stop() -> None:
        over.set()
        writer.join()

    migration.written = range(0)
    migration.suspends = stop
    writer.start()
    try:
        sent, received = migration.run(BOTH, BOTH)
    finally:
        stop()
    assert (sent.result, received.result) == ((0, 0), (0, 0)), (sent.logged, received.logged)
    destination.resume()
    wait_for(lambda: migration.traced("pages_gone"), "all pages are there")
    assert migration.traced("postcopy_pfns_ahead")
    rings = {source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]}
    assert set(source.differences(destination)) <= rings


def test_a_list_of_pages_that_is_lost(
    migration: Migration, source: Domain, destination: Domain
) -> None:
    """libxl is told that the restore has failed: it lets the guest run on at its source, and not
    here, where its old pages are."""
    lost = {"XEN_SAVE_HELPER_FAULTS": "record.libxc.POSTCOPY_PFNS:read=drop"}
    sent, received = migration.run(BOTH, BOTH | lost)
    assert received.retval == -1
    assert any("0 pages were listed, want" in line for line in received.logged), received.logged
    assert sent.result == (0, 0), sent.logged
    assert not destination.state.started
    source.resume()
    wait_for(lambda: migration.traced("pages_not_wanted"), "the page server ends")


def page_server(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, address: str = "127.0.0.1"
) -> PageServer:
    for name, value in {**migration.environment, **BOTH}.items():
        monkeypatch.setenv(name, value)
    request = HelperRequest(Operation.SAVE, 1, -1)
    events, control = str(migration.events), migration.control
    return PageServer(Job(request, listen=Listen(address), control=control, events=events))


def connected(
    migration: Migration, monkeypatch: pytest.MonkeyPatch
) -> tuple[PageServer, TunnelClient]:
    """A page server, and a receiver's end that has said nothing yet."""
    server = page_server(migration, monkeypatch)
    offer = server.offer()
    keys = Keys(offer.client_key.encode(), offer.client_secret.encode())
    return server, TunnelClient(offer.address, offer.port, keys, offer.server_key.encode())


def pages_left() -> Bitmap:
    bitmap = Bitmap(0x900)
    bitmap[WRITTEN.start : WRITTEN.stop] = b"\1" * len(WRITTEN)
    return bitmap


def suspend_mapped(server: PageServer, source: Domain) -> None:
    """The pages that will be left are mapped while the guest runs."""
    server.map(pages_left())
    source.suspend()


def serves_alone(server: PageServer, source: Domain) -> None:
    """The receiver is ready: the guest is suspended, and the save is done."""
    assert server.refusal(30) == ""
    suspend_mapped(server, source)
    assert server.keep(pages_left()) == len(WRITTEN)
    server.let_go()
    server.close()


def test_a_guest_that_runs_here_again_needs_no_page_server(
    machine: Machine, migration: Migration, source: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration has failed after both helpers had done their work; so nobody takes pages."""
    server, client = connected(migration, monkeypatch)
    assert server.refusal(0) is None
    try:
        os.write(client.fileno(), b"\n")
        serves_alone(server, source)
        source.resume()
        wait_for(lambda: bool(migration.traced("pages_not_wanted")), "it ends")
        os.waitpid(server.pid, 0)
    finally:
        client.close(0)


@pytest.mark.parametrize("decision", ["resumed", "destroyed"])
def test_a_receiver_that_gives_up(
    machine: Machine,
    migration: Migration,
    source: Domain,
    monkeypatch: pytest.MonkeyPatch,
    decision: str,
) -> None:
    """The pages are lost only if the guest is destroyed here."""
    server, client = connected(migration, monkeypatch)
    os.write(client.fileno(), b"\n")
    serves_alone(server, source)
    wait_for(lambda: migration.traced("pages_kept"), "it serves alone")
    client.give_up()
    if decision == "resumed":
        source.resume()
        wait_for(lambda: migration.traced("pages_not_wanted"), "it ends")
    else:
        source.destroy()
        wait_for(lambda: migration.traced("pages_lost"), "it ends")
    os.waitpid(server.pid, 0)


def test_a_helper_that_dies_takes_its_page_server_with_it(
    machine: Machine, migration: Migration, source: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the save is not done: the guest will run on here."""
    server = page_server(migration, monkeypatch)
    server.offer()
    suspend_mapped(server, source)
    assert server.keep(pages_left()) == len(WRITTEN)
    server.close()
    wait_for(lambda: not left_behind(migration.events), "it ends")
    assert migration.traced("pages_kept") == []


def test_where_nobody_can_listen_it_is_an_ordinary_migration(
    machine: Machine, migration: Migration, source: Domain, destination: Domain
) -> None:
    sent, received = migration.run({"XEN_SAVE_HELPER_POSTCOPY": "192.0.2.7"}, BOTH)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    (why,) = (line for line in sent.logged if "no postcopy" in line)
    assert "192.0.2.7:0: Cannot assign requested address" in why


def test_a_page_server_keeps_what_it_has_mapped(
    machine: Machine, migration: Migration, source: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not mapped is lost with the guest; so this is said while the guest can go on here."""
    server = page_server(migration, monkeypatch)
    server.offer()
    suspend_mapped(server, source)
    more = pages_left()
    more[WRITTEN.stop] = 1
    with pytest.raises(OSError, match=rf"page server: pfn {WRITTEN.stop:#x} is not mapped"):
        server.keep(more)
    server.close()


def test_a_page_server_that_cannot_listen_says_so(
    machine: Machine, migration: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = page_server(migration, monkeypatch, "192.0.2.7")
    with pytest.raises(OSError, match=r"page server: .*192\.0\.2\.7:0: Cannot assign"):
        server.offer()
    server.close()
