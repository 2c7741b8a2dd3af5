"""The receiving side where its own host fails it: the guest that runs is not taken back, and a
copy that is given up is found by its journal."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket

import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import MEMORY, Side, run
from xen_save_helper.ipc_schema.streams import xl_handshake, xl_header
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl.journal import Journal, Promise
from xen_save_helper.toolstack.xl.receive import ReceiveResult, receive

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    side = Side(host_factory("source"))
    side.host.create_guest("g", MEMORY, "random")
    return side


@pytest.fixture
def destination(host_factory: HostFactory) -> Side:
    return Side(host_factory("destination"))


async def send(side: Side, link: socket.socket, strategy: MemoryStrategy) -> bytes:
    """Send the guest and let it go; what the receiver says from then on."""

    async def take(size: int) -> bytes:
        return await fd_io.read_exactly(link.fileno(), size, limit=20)

    domid = side.host.find("g")
    with link:
        banner, ready = xl_handshake.BANNER.data, xl_handshake.READY.data
        assert await take(len(banner)) == banner
        config = json.dumps(side.host.config(domid)).encode() + b"\0"
        await fd_io.write_all(link.fileno(), xl_header.encode_header(config), limit=20)
        fd = link.fileno()
        saved = await domain_live_migrate(side.ctx, domid, fd, 0, fd, strategy)
        assert saved.rc == 0, saved
        if strategy is MemoryStrategy.DEFAULT:
            assert await take(len(ready)) == ready
            await fd_io.write_all(fd, xl_handshake.GO.data, limit=20)
        said = b""
        try:
            while True:
                said += await take(1)
        except EOFError:
            return said


def migrate(
    source: Side, destination: Side, strategy: MemoryStrategy = MemoryStrategy.DEFAULT
) -> tuple[bytes, ReceiveResult]:
    async def work() -> tuple[bytes, ReceiveResult]:
        ours, theirs = socket.socketpair()
        sending = asyncio.ensure_future(send(source, ours, strategy))
        with theirs:
            fd = theirs.fileno()
            result = await receive(destination.receiver_ctx, fd, fd, peer="the test")
        return await sending, result

    return run(work())


def journals(side: Side) -> list[str]:
    return [name for name in os.listdir(side.host.state_dir) if "journal" in name]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (MemoryStrategy.DEFAULT, xl_handshake.REPORT.data + b"\0"),
        (MemoryStrategy.POSTCOPY, xl_handshake.SYNC.data),
    ],
)
def test_a_guest_that_runs_is_kept_though_the_journal_cannot_say_so(
    source: Side,
    destination: Side,
    monkeypatch: pytest.MonkeyPatch,
    strategy: MemoryStrategy,
    said: bytes,
) -> None:
    promise_of = Journal.promise

    def full(journal: Journal, promise: Promise) -> None:
        if promise is Promise.STARTED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        promise_of(journal, promise)

    monkeypatch.setattr(Journal, "promise", full)
    told, result = migrate(source, destination, strategy)
    assert (told, result.started) == (said, True), result
    assert "No space left" in result.reason
    assert destination.state("g") is GuestState.RUNNING
    assert destination.host.verify(destination.host.find("g"), 30).memory_ok
    assert journals(destination) == []


async def refused(side: Side, config: bytes) -> ReceiveResult:
    """What comes of a peer that sends this configuration, and then nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(xl_header.encode_header(config))
        ours.shutdown(socket.SHUT_WR)
        return await receive(side.receiver_ctx, theirs.fileno(), theirs.fileno(), peer="the test")


@pytest.mark.parametrize("simulated", ["[1]", '{"workload": [1]}', "null"])
def test_a_configuration_that_cannot_be_is_a_refusal(destination: Side, simulated: str) -> None:
    parts = '"c_info": {"name": "g", "type": "pvh"}, "b_info": {"max_memkb": 4096}'
    config = f'{{{parts}, "simulated": {simulated}}}'.encode()
    result = run(refused(destination, config))
    assert not result.started
    assert "the domain g--incoming cannot be created: " in result.reason
    assert destination.host.domains() == []
    assert journals(destination) == []


class Faulty(SimulatedHost):
    def restore_program(self, config: object, name: str, *, postcopy: bool = False) -> None:
        raise RuntimeError("a fault of the program")


def test_a_fault_that_leaves_nothing_leaves_no_journal(destination: Side) -> None:
    side = Side(Faulty(destination.host.directory))
    config = b'{"c_info": {"name": "g", "type": "pvh"}, "b_info": {"max_memkb": 4096}}'
    with pytest.raises(RuntimeError, match="a fault of the program"):
        run(refused(side, config))
    assert journals(side) == []


class DestroyedAfterGo(SimulatedHost):
    """A person destroys the copy when it is about to be started."""

    def unpause(self, domid: int) -> None:
        self.destroy(domid)
        super().unpause(domid)


def test_a_copy_that_is_gone_is_given_back(source: Side, destination: Side) -> None:
    """Nothing of it can run here, and the sender may let the guest run on."""
    destination = Side(DestroyedAfterGo(destination.host.directory))
    told, result = migrate(source, destination)
    assert told == xl_handshake.REPORT.data + b"\3" + xl_handshake.PERMISSION.data
    assert not result.started
    assert "there is no domain" in result.reason
    assert journals(destination) == []


class Unstartable(SimulatedHost):
    def unpause(self, domid: int) -> None:
        raise OSError(errno.EIO, "this host starts no guest")


def test_a_copy_that_is_given_up_has_the_name_that_its_journal_knows(
    source: Side, destination: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the receiver be killed there, `recover` must find the copy."""
    destination = Side(Unstartable(destination.host.directory))
    promise_of = Journal.promise
    names: dict[Promise, list[str]] = {}

    def noted(journal: Journal, promise: Promise) -> None:
        names[promise] = [row.name for row in destination.host.domains()]
        promise_of(journal, promise)

    monkeypatch.setattr(Journal, "promise", noted)
    told, result = migrate(source, destination)
    assert told == xl_handshake.REPORT.data + b"\3" + xl_handshake.PERMISSION.data
    assert not result.started
    assert names[Promise.RECEIVING] == ["g--incoming"]
    assert destination.host.domains() == []
    assert journals(destination) == []
