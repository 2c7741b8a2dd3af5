"""Postcopy, end to end: a guest that runs at the destination while its memory arrives."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.helper.engine.running import (
    Controller,
    Migration,
    Process,
    log_dirty,
    migration,
    restore,
    restore_emulator,
    restore_job,
    save_job,
)
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.domain import SimulatedDomain
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.page_lists import encode_page_list
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.toolstack.hosts.interface import GuestState

pytestmark = pytest.mark.usefixtures("no_leaks")

MEMORY = 16 << 20
PAGE = 4096
SEND = save_job(live=True, postcopy=True)
RECEIVE = restore_job(postcopy=True)


def postcopy_in_round(number: int) -> Callable[..., int]:
    def policy(iteration: int, **_stats: int) -> int:
        later = iteration < number
        return PrecopyPolicy.CONTINUE_PRECOPY if later else PrecopyPolicy.POSTCOPY

    return policy


@pytest.mark.parametrize("kind", ["pvh", "hvm"])
@pytest.mark.parametrize("workload", ["idle", "sequential", "random", "write-heavy"])
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_guest_runs_on_while_its_memory_comes(
    host_factory: HostFactory, workload: str, rounds: int, kind: str
) -> None:
    with migration(host_factory, workload, MEMORY, type=kind) as guest:
        guest.receive(RECEIVE)
        sent, controller = guest.send(
            SEND, precopy_policy=postcopy_in_round(rounds), postcopy_transition=1
        )
        results = guest.received()
        assert len(controller.called("postcopy_transition")) == 1
        assert results.statistics.bytes == sent.bytes
        assert results.statistics.postcopy_pages <= sent.postcopy_pages
        if rounds == 0:
            assert sent.pages == 1, "that of the vcpu_info"
            assert sent.postcopy_pages >= MEMORY // PAGE
        assert not log_dirty(guest.source, guest.domid)
        report = guest.target.verify(guest.new, 30)
        assert report.state is GuestState.RUNNING
        assert report.memory_ok


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_guest_whose_hypervisor_needs_a_page_at_once_is_lost_without_it(
    host_factory: HostFactory, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedDomain, "needed_at_once", lambda _self: pfns_of())
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        guest.send(SEND, precopy_policy=postcopy_in_round(rounds), postcopy_transition=1)
        guest.received()
        report = guest.target.report(guest.new)
        assert report.state is GuestState.CRASHED
        assert report.crash is not None
        assert "vcpu_info: pfn 0x400 is paged out, and it does not wait" in report.crash


def test_the_guest_faults_and_is_served_first(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        sent, _ = guest.send(
            save_job(live=True, postcopy=True, bandwidth=20_000_000),
            precopy_policy=postcopy_in_round(0),
            postcopy_transition=1,
        )
        results = guest.received()
        assert results.statistics.postcopy_faults >= sent.postcopy_faults > 10
        report = guest.target.verify(guest.new, 30)
        assert report.memory_ok
        assert report.fault_count > 10
        assert report.fault_p50_us is not None
        assert report.fault_p50_us < 100_000, "far less than the half second that all pages take"


@pytest.mark.parametrize(("milliseconds", "all_fit"), [(10, False), (5_000, True)])
def test_the_hottest_pages_go_ahead_within_the_downtime(
    host_factory: HostFactory, milliseconds: int, all_fit: bool
) -> None:
    """The guest writes an eighth of its memory in each round."""
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        limits = {"bandwidth": 50_000_000, "max_downtime_ms": milliseconds}
        sent, controller = guest.send(
            save_job(live=True, postcopy=True, **limits),
            precopy_policy=postcopy_in_round(2),
            postcopy_transition=1,
        )
        guest.received()
        (told,) = re.findall(
            r"(\d+) of (\d+) hot pages go ahead of postcopy; (\d+) can be sent in",
            controller.logged(),
        )
        ahead, hot, room = map(int, told)
        assert hot > MEMORY // PAGE // 16
        assert ahead == min(hot, room)
        # The pages and their list take 4,104 bytes each.
        assert 0 < room < 1.2 * limits["bandwidth"] / 4104 * milliseconds / 1000
        assert (ahead == hot) is all_fit
        assert (sent.postcopy_pages < hot // 4) is all_fit
        assert guest.target.verify(guest.new, 30).memory_ok


def test_without_a_downtime_no_page_is_counted_as_hot(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        _, controller = guest.send(SEND, precopy_policy=postcopy_in_round(2), postcopy_transition=1)
        guest.received()
        assert "hot pages" not in controller.logged()


def test_a_round_that_is_left_early_goes_by_postcopy(host_factory: HostFactory) -> None:
    asked = []

    def policy(**stats: int) -> int:
        asked.append(stats)
        return PrecopyPolicy.POSTCOPY if len(asked) == 3 else PrecopyPolicy.CONTINUE_PRECOPY

    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        sent, _ = guest.send(SEND, precopy_policy=policy, postcopy_transition=1)
        assert sent.pages == 2048 + 1, "and again that of the vcpu_info"
        assert sent.postcopy_pages >= MEMORY // PAGE - 2048
        guest.received()
        assert guest.target.verify(guest.new, 30).memory_ok


def test_pages_that_the_guest_gives_back_are_not_waited_for(host_factory: HostFactory) -> None:
    with migration(host_factory, "idle", MEMORY) as guest:

        def resume() -> int:
            restore_emulator(guest.source, guest.domid, guest.target, guest.new)
            guest.target.unpause(guest.new)
            return 1

        receiver = Controller({"static_data_done": 0, "postcopy_transition": resume})
        guest.receive(RECEIVE, receiver)
        gone = Process(lambda: balloon_when_it_runs(guest, 2000), drop=(guest.near.fileno(),))
        sent, controller = guest.send(
            save_job(live=True, postcopy=True, bandwidth=4_000_000),
            precopy_policy=postcopy_in_round(0),
            postcopy_transition=1,
        )
        assert gone.result() > 0
        results = guest.received()
        assert results.statistics.bytes <= sent.bytes
        report = guest.target.verify(guest.new, 30)
        assert report.state is GuestState.RUNNING
        assert report.memory_ok
        assert controller.calls[-1] == ("switch_qemu_logdirty", {"domid": guest.domid, "enable": 0})


def balloon_when_it_runs(guest: Migration, pages: int) -> int:
    """Wait for the guest's first step at the target, then have it give pages back."""
    wait_for(lambda: guest.target.report(guest.new).first_step_at is not None, "its first step")
    return guest.target.balloon(guest.new, pages)


def test_a_transition_that_fails_fails_the_save(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE)
        with pytest.raises(OSError, match="transition callback failed") as raised:
            guest.send(SEND, precopy_policy=postcopy_in_round(0), postcopy_transition=0)
        assert raised.value.errno == errno.EIO
        assert not log_dirty(guest.source, guest.domid)
        guest.near.close()
        # The stream ends, or the back channel if a fault is about to be sent, or both if one was.
        ends = r"pages are missing|Broken pipe|Connection reset"
        with pytest.raises((DecodeError, OSError), match=ends):
            guest.received()


def test_a_transition_that_fails_fails_the_restore(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive(RECEIVE, Controller({"static_data_done": 0, "postcopy_transition": 0}))
        with pytest.raises(OSError, match=r"Broken pipe|closed it|reset"):
            guest.send(SEND, precopy_policy=postcopy_in_round(0), postcopy_transition=1)
        with pytest.raises(OSError, match="transition callback failed"):
            guest.received()


def test_a_receiver_that_dies_in_the_middle(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:

        def die() -> int:
            assert guest.receiver is not None
            guest.receiver.kill()
            return 1

        guest.receive(RECEIVE)
        with pytest.raises(OSError, match=r"closed it|Broken pipe|reset"):
            guest.send(SEND, precopy_policy=postcopy_in_round(0), postcopy_transition=die)
        assert not log_dirty(guest.source, guest.domid)


@pytest.mark.parametrize("evicts", [False, True])
def test_a_receiver_that_says_nothing(host_factory: HostFactory, evicts: bool) -> None:
    """It takes all pages, and never sends POSTCOPY_COMPLETE; or it never evicts what is listed, and
    the guest is not even suspended."""
    unsaid = "POSTCOPY_COMPLETE" if evicts else "POSTCOPY_READY"
    with migration(host_factory, "idle", 2 << 20) as guest:
        drain = Process(lambda: drained(guest.far, evicts=evicts), drop=(guest.near.fileno(),))
        try:
            with pytest.raises(TimeoutError, match=f"waiting for {unsaid}"):
                guest.send(
                    save_job(live=True, postcopy=True, stall_limit=1),
                    precopy_policy=postcopy_in_round(0),
                    postcopy_transition=1,
                )
        finally:
            drain.kill()
        runs = guest.source.report(guest.domid).state is GuestState.RUNNING
        assert runs is not evicts


def drained(sock: socket.socket, *, evicts: bool) -> None:
    """Read all; answer what comes ahead if this receiver `evicts`."""
    if evicts:
        sock.sendall(3 * record(RecordType.POSTCOPY_READY))
    while sock.recv(1 << 16):
        pass


def record(kind: RecordType, body: bytes = b"") -> bytes:
    return encode_record(kind, body)


def page_list(*pfns: int, nibble: int = 0) -> bytes:
    return encode_page_list(pfns_of(pfns), bytes([nibble << 4]) * len(pfns))


def page_data(*pfns: int) -> bytes:
    return record(RecordType.POSTCOPY_PAGE_DATA, page_list(*pfns) + bytes(PAGE * len(pfns)))


HEADERS = (
    b"\xff" * 8
    + b"XENF"
    + struct.pack(">IHHI", 3, 0, 0, 0)
    + struct.pack("<IHHII", 2, 12, 0, 4, 17)
)
STATIC = record(RecordType.STATIC_DATA_END)
STATE = record(RecordType.HVM_CONTEXT, bytes(64))
BEGIN = record(RecordType.POSTCOPY_BEGIN)
PFNS_BEGIN = record(RecordType.POSTCOPY_PFNS_BEGIN)
LISTED = record(RecordType.POSTCOPY_PFNS, page_list(1, 2, 3))
XALLOC = record(RecordType.POSTCOPY_PFNS, page_list(11, nibble=0xE))


def transition(listed: int) -> bytes:
    return record(RecordType.POSTCOPY_TRANSITION, struct.pack("<Q", listed))


TRANSITION = transition(3)
END = record(RecordType.END)
STATE_AHEAD = BEGIN + STATE + PFNS_BEGIN
START = HEADERS + STATIC + STATE_AHEAD
AHEAD = HEADERS + STATIC + PFNS_BEGIN + LISTED
READY = record(RecordType.POSTCOPY_READY)


def receive_raw(hosts: HostFactory, stream: bytes, **parameters: Any) -> tuple[Any, bytes]:
    """Restore from a handmade stream: the results, and what was sent over the back channel."""
    host = hosts("target")
    domid = host.create(
        {
            "c_info": {"type": "pvh", "name": "raw"},
            "b_info": {"max_vcpus": 1, "max_memkb": 4096, "target_memkb": 4096},
        },
        "raw",
    )
    controller = Controller({"static_data_done": 0, "postcopy_transition": 1})
    near, far = socket.socketpair()
    with near, far:
        near.sendall(stream)
        near.shutdown(socket.SHUT_WR)
        results = restore(
            host,
            domid,
            far.fileno(),
            far.fileno(),
            controller,
            restore_job(**{"postcopy": True, **parameters}),
        )
        far.close()
        return results, near.recv(1 << 16)


def test_a_stream_made_by_hand(host_factory: HostFactory) -> None:
    stream = START + LISTED + TRANSITION + page_data(2, 1) + page_data(3) + END
    results, back = receive_raw(host_factory, stream)
    assert results.statistics.postcopy_pages == 3
    assert back == record(RecordType.POSTCOPY_COMPLETE)


def test_nothing_is_left_to_postcopy(host_factory: HostFactory) -> None:
    _, back = receive_raw(host_factory, START + transition(0) + END)
    assert back == record(RecordType.POSTCOPY_COMPLETE)


def test_listed_pages_without_contents_are_not_waited_for(host_factory: HostFactory) -> None:
    lists = b"".join(
        record(RecordType.POSTCOPY_PFNS, page_list(pfn, nibble=nibble))
        for pfn, nibble in ((10, 0xD), (11, 0xE), (12, 0xF))
    )
    _, back = receive_raw(host_factory, START + lists + TRANSITION + END)
    assert back == record(RecordType.POSTCOPY_COMPLETE)


def test_pages_are_listed_before_the_guest_is_suspended(host_factory: HostFactory) -> None:
    lists = AHEAD + STATE_AHEAD + record(RecordType.POSTCOPY_PFNS, page_list(4)) + transition(4)
    stream = lists + page_data(4, 1) + page_data(2, 3) + END
    results, back = receive_raw(host_factory, stream)
    assert results.statistics.postcopy_pages == 4
    assert back == 2 * READY + record(RecordType.POSTCOPY_COMPLETE)


def test_a_page_of_a_list_goes_ahead_after_all(host_factory: HostFactory) -> None:
    sent = record(RecordType.PAGE_DATA, page_list(7, 2, 3) + b"\1" * PAGE * 3)
    stream = AHEAD + sent + STATE_AHEAD + TRANSITION + page_data(1) + END
    results, back = receive_raw(host_factory, stream)
    assert (results.statistics.pages, results.statistics.postcopy_pages) == (3, 1)
    assert back == 2 * READY + record(RecordType.POSTCOPY_COMPLETE)


@pytest.mark.parametrize("nibble", [0xD, 0xE, 0xF])
def test_a_page_of_a_list_is_given_back_before_the_suspension(
    host_factory: HostFactory, nibble: int
) -> None:
    gone = record(RecordType.POSTCOPY_PFNS, page_list(2, nibble=nibble))
    stream = AHEAD + STATE_AHEAD + gone + transition(4) + page_data(1, 3) + END
    _, back = receive_raw(host_factory, stream)
    assert back == 2 * READY + record(RecordType.POSTCOPY_COMPLETE)


def test_a_ring_of_a_list_is_empty_at_the_destination(host_factory: HostFactory) -> None:
    """The console's page, which a restore empties."""
    params = record(RecordType.HVM_PARAMS, struct.pack("<IIQQ", 1, 0, 17, 3))
    stream = AHEAD + BEGIN + STATE + params + PFNS_BEGIN + TRANSITION + page_data(1, 2) + END
    _, back = receive_raw(host_factory, stream)
    assert back == 2 * READY + record(RecordType.POSTCOPY_COMPLETE)


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (AHEAD + LISTED, "pfn 0x1 is outstanding and was listed"),
        (AHEAD + STATE_AHEAD + LISTED, "pfn 0x1 is outstanding and was listed"),
        (AHEAD + STATE_AHEAD + transition(0), "3 pages were listed, want 0"),
        (
            AHEAD + record(RecordType.PAGE_DATA, page_list(2, 2) + bytes(2 * PAGE)),
            "pfn 0x2 is ready and was arrived",
        ),
        (AHEAD + STATE, "may not come here, in the list of postcopy pages ahead"),
        (AHEAD + END, "may not come here, in the list of postcopy pages ahead"),
        (AHEAD + TRANSITION, "may not come here, in the list of postcopy pages ahead"),
        (START + LISTED + LISTED, "pfn 0x1 is outstanding and was listed"),
        (
            START + record(RecordType.POSTCOPY_PFNS, page_list(4, 5, 4)),
            "pfn 0x4 is outstanding and was listed",
        ),
        (START + LISTED + TRANSITION + page_data(9), "pfn 0x9 is invalid and was arrived"),
        (START + LISTED + TRANSITION + page_data(1) + page_data(1), "0x1 is ready and was arrived"),
        (START + LISTED + TRANSITION + page_data(2, 2), "0x2 is ready and was arrived"),
        (START + LISTED + TRANSITION + page_data(1, 2, 3) + page_data(1), "is ready and was"),
        (START + LISTED + TRANSITION + page_data(1) + END, "2 postcopy pages never came"),
        (START + LISTED + TRANSITION + page_data(1), "2 pages are missing"),
        (START + LISTED + TRANSITION + page_data(1)[:3000], "3 pages are missing"),
        (START + LISTED + TRANSITION + LISTED, "POSTCOPY_PFNS"),
        (START + TRANSITION, "0 pages were listed, want 3"),
        (START + LISTED + transition(4), "3 pages were listed, want 4"),
        (START + LISTED + transition(2), "3 pages were listed, want 2"),
        (START + XALLOC + XALLOC + transition(1), "2 pages were listed, want 1"),
        (START + LISTED + record(RecordType.POSTCOPY_TRANSITION), "want 8"),
        (START + LISTED + page_data(1), "may not come here, in the list of postcopy pages"),
        (HEADERS + STATIC + BEGIN + BEGIN, "may not come here"),
        (HEADERS + STATIC + BEGIN + END, "may not come here"),
        (HEADERS + STATIC + BEGIN + PFNS_BEGIN + transition(0), "HVM_CONTEXT"),
        (START + record(RecordType.POSTCOPY_PFNS, page_list(2**30)), "outside the domain"),
        (START + record(RecordType.POSTCOPY_PFNS, struct.pack("<IIQ", 2, 0, 1)), "2 pfns"),
        (START + record(RecordType.POSTCOPY_FAULT, page_list(1)), "POSTCOPY_FAULT"),
    ],
)
def test_what_a_sender_may_not_do(host_factory: HostFactory, stream: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        receive_raw(host_factory, stream)


def test_postcopy_that_was_not_agreed_upon(host_factory: HostFactory) -> None:
    with pytest.raises(DecodeError, match="not agreed on"):
        receive_raw(host_factory, START, postcopy=False)


def test_a_sender_that_stops_sending(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.near.sendall(START + LISTED + TRANSITION + page_data(1))
        with pytest.raises(TimeoutError, match="no postcopy page for"):
            restore(
                guest.target,
                guest.new,
                guest.far.fileno(),
                guest.far.fileno(),
                Controller({"static_data_done": 0, "postcopy_transition": 1}),
                restore_job(postcopy=True, stall_limit=0.2),
            )
