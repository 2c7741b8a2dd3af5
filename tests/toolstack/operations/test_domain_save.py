"""Saves with real helpers and real guests: how they succeed, and every rule of ending."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import MEMORY, Side, cancelled, kill_helper, live_migrate, run
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.context import OURS
from xen_save_helper.toolstack.helpers.request import OwnHelper
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.inspect.walk import inspect
from xen_save_helper.toolstack.operations.domain_save import (
    SUSPEND_LIVE,
    domain_live_migrate,
    domain_suspend,
)
from xen_save_helper.toolstack.operations.save import PostcopyTransitioned, SaveResult
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

NEVER, FAILED, DONE = PostcopyTransitioned
ENDLESS = PrecopyLimits(dirty_threshold=0, max_rounds=1 << 30)
"""Precopy that a test ends."""
SLOW = 1 << 20
"""Bytes a second: the first round takes seconds, in which a test ends the save."""

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(host_factory("source"))


@pytest.fixture
def destination(host_factory: HostFactory) -> Side:
    return Side(host_factory("destination"))


@pytest.fixture
def domid(source: Side) -> int:
    return source.host.create_guest("g", MEMORY, "random")


class Drain:
    """A peer that takes all and ignores it, until it hangs up."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def fd(self) -> int:
        """Our end. Needs a running loop."""
        asyncio.get_running_loop().add_reader(self._theirs, self._take)
        return self._ours.fileno()

    def _take(self) -> None:
        if not self._theirs.recv(1 << 20):
            asyncio.get_running_loop().remove_reader(self._theirs)

    def hang_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self._theirs)
        self._theirs.close()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def drain() -> Iterator[Drain]:
    peer = Drain()
    yield peer
    peer.close()


async def suspend(source: Side, domid: int, peer: Drain) -> SaveResult:
    return await domain_suspend(source.ctx, domid, peer.fd())


async def precopy(source: Side, domid: int, peer: Drain) -> SaveResult:
    fd = peer.fd()
    return await domain_live_migrate(source.ctx, domid, fd, 0, fd)


async def precopy_for_ever(source: Side, domid: int, peer: Drain) -> SaveResult:
    fd = peer.fd()
    return await domain_live_migrate(source.ctx, domid, fd, 0, fd, precopy=ENDLESS, bandwidth=SLOW)


def names(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [entry.name for entry in inspect(file) if entry.layer == "libxl"]


class TestThrough:
    @pytest.mark.parametrize("kind", ["hvm", "pvh"])
    @pytest.mark.parametrize("flags", [0, SUSPEND_LIVE])
    def test_save_to_a_file(self, source: Side, tmp_path: Path, kind: str, flags: int) -> None:
        domid = source.host.create_guest("g", MEMORY, "random", type=kind)
        path = tmp_path / "stream"
        with path.open("wb") as file:
            result = run(domain_suspend(source.ctx, domid, file.fileno(), flags))
        assert result.rc == 0, result
        assert result.suspended
        assert result.postcopy_transitioned is NEVER
        assert result.statistics is not None
        assert result.statistics.pages >= MEMORY // 4096
        assert source.state() is GuestState.SUSPENDED
        emulator = ["EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT"] if kind == "hvm" else []
        found = names(path)
        assert [name for name in found if name in {*emulator, "LIBXC_CONTEXT", "END"}] == [
            "LIBXC_CONTEXT",
            *emulator,
            "END",
        ]
        source.at_rest(domid)

    @pytest.mark.parametrize("kind", ["hvm", "pvh"])
    @pytest.mark.parametrize("strategy", MemoryStrategy)
    def test_live_migration(
        self, source: Side, destination: Side, kind: str, strategy: MemoryStrategy
    ) -> None:
        domid = source.host.create_guest("g", MEMORY, "random", type=kind)
        postcopy = strategy is MemoryStrategy.POSTCOPY
        calls: list[str] = []
        saved, restored = run(
            live_migrate(
                source,
                destination,
                domid,
                strategy,
                precopy=PrecopyLimits(0, 0 if postcopy else 2),
                on_transition=lambda: calls.append("transition"),
                on_resume=lambda: calls.append("resume"),
            )
        )
        assert (saved.rc, restored.rc) == (0, 0), (saved, restored)
        assert saved.postcopy_transitioned is (DONE if postcopy else NEVER)
        assert restored.postcopy_resumed is postcopy
        assert calls == (["transition", "resume"] if postcopy else [])
        assert saved.statistics is not None
        assert bool(saved.statistics.postcopy_pages) is postcopy
        assert restored.domid is not None
        assert destination.state() is (GuestState.RUNNING if postcopy else GuestState.PAUSED)
        assert source.state() is GuestState.SUSPENDED
        destination.host.unpause(restored.domid)
        assert destination.host.verify(restored.domid, 30).memory_ok


class TestRefused:
    """Nothing is begun."""

    def test_live_migration_requires_the_back_channel(self, source: Side, domid: int) -> None:
        result = run(domain_live_migrate(source.ctx, domid, 1, 0, -1))
        assert result.rc == Error.INVAL
        assert "recv_fd" in result.reason
        assert source.happenings.events == []

    def test_unknown_domain(self, source: Side) -> None:
        result = run(domain_suspend(source.ctx, 77, 1))
        assert result.rc == Error.DOMAIN_NOTFOUND
        assert not result.suspended

    def test_a_domain_that_is_log_dirty_already(self, source: Side, domid: int) -> None:
        with open_on_host(source.host.directory, domid) as domain:
            domain.logdirty_enable()
        with open("/dev/null", "r+b", buffering=0) as null:
            fd = null.fileno()
            result = run(domain_live_migrate(source.ctx, domid, fd, 0, fd))
        assert result.rc == Error.FAIL
        assert "log-dirty" in result.reason
        with open_on_host(source.host.directory, domid) as domain:
            domain.logdirty_off()


class TestHelper:
    """Rules of running the helper."""

    def test_cannot_start_it(self, source: Side, domid: int, drain: Drain) -> None:
        ctx = replace(source.ctx, program=OwnHelper(("/nonexistent/helper",)))

        async def work() -> SaveResult:
            return await domain_suspend(ctx, domid, drain.fd())

        result = run(work())
        assert result.rc == Error.FAIL
        assert not result.suspended
        source.at_rest(domid)

    def test_killed_in_precopy_log_dirty_is_turned_off(
        self, source: Side, domid: int, drain: Drain
    ) -> None:
        source.happenings.at("callback precopy_policy", kill_helper("save"))
        result = run(precopy_for_ever(source, domid, drain))
        assert result.rc == Error.FAIL
        assert not result.suspended
        row = source.row()
        assert row is not None
        assert not row.log_dirty
        source.at_rest(domid)

    def test_killed_while_the_guest_is_being_suspended(self, source: Side, drain: Drain) -> None:
        domid = source.host.create_guest(
            "g", MEMORY, "random", behaviour=Behaviour.LATE, behaviour_seconds=0.3
        )
        source.happenings.at("suspend_request", kill_helper("save"))
        result = run(suspend(source, domid, drain))
        assert result.rc == Error.FAIL
        now = GuestState.SUSPENDED if result.suspended else GuestState.RUNNING
        assert source.state() is now
        source.host.set_behaviour(domid, Behaviour.NORMAL)
        source.at_rest(domid)

    def test_sigterm_is_its_error_path(self, source: Side, domid: int, drain: Drain) -> None:
        source.happenings.at("callback precopy_policy", kill_helper("save", signal.SIGTERM))
        result = run(precopy_for_ever(source, domid, drain))
        assert result.rc == Error.GUEST_TIMEDOUT
        assert "logdirty_off" not in source.happenings.names()
        source.at_rest(domid)

    def test_stopped_it_is_continued(self, source: Side, domid: int, drain: Drain) -> None:
        source.limited(stopped=2)
        source.happenings.at("callback precopy_policy", kill_helper("save", signal.SIGSTOP))
        result = run(precopy(source, domid, drain))
        assert result.rc == 0
        (stood,) = [e for e in source.happenings.events if e["event"] == "stood_still"]
        assert stood["who"] == "the save helper"
        assert stood["seconds"] >= 1.5


class TestGuest:
    def test_never_answers_guest_timedout(self, source: Side, drain: Drain) -> None:
        source.limited(suspend=0.2)
        domid = source.host.create_guest("g", MEMORY, "random", behaviour=Behaviour.REFUSE)
        result = run(suspend(source, domid, drain))
        assert result.rc == Error.GUEST_TIMEDOUT
        assert not result.suspended
        assert "suspend request" in result.reason
        assert source.state() is GuestState.RUNNING
        source.host.set_behaviour(domid, Behaviour.NORMAL)
        source.at_rest(domid)

    def test_crashes_the_steps_own_code(self, source: Side, drain: Drain) -> None:
        domid = source.host.create_guest("g", MEMORY, "random", behaviour=Behaviour.DIE)
        result = run(suspend(source, domid, drain))
        assert result.rc == Error.FAIL
        assert "crashed" in result.reason


class TestStream:
    def test_the_other_side_disconnects_before_the_header(self, source: Side, domid: int) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            result = run(domain_suspend(source.ctx, domid, ours.fileno()))
        assert result.rc == Error.FAIL
        assert "Broken pipe" in result.reason
        assert not result.suspended

    def test_a_full_disk(self, source: Side, domid: int) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            result = run(domain_suspend(source.ctx, domid, full.fileno()))
        assert result.rc == Error.FAIL
        assert "No space left" in result.reason
        source.at_rest(domid)

    def test_the_other_side_disconnects_in_precopy(
        self, source: Side, domid: int, drain: Drain
    ) -> None:
        """The guest was never asked, so it never answered: GUEST_TIMEDOUT, as in libxl."""
        source.happenings.at("callback precopy_policy", drain.hang_up)
        result = run(precopy_for_ever(source, domid, drain))
        assert result.rc == Error.GUEST_TIMEDOUT
        assert "Broken pipe" in result.reason
        assert not result.suspended
        source.at_rest(domid)

    def test_the_other_side_disconnects_after_the_suspension(
        self, source: Side, domid: int
    ) -> None:
        ours, theirs = socket.socketpair()
        source.happenings.at("suspend_done", theirs.close)
        with ours:
            result = run(domain_suspend(source.ctx, domid, ours.fileno()))
        assert result.rc == Error.FAIL
        assert result.suspended
        source.at_rest(domid)

    def test_a_receiver_that_does_not_begin_is_waited_for(
        self, source: Side, domid: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """xl's does not while it waits for its lock, because another guest comes in."""
        monkeypatch.setattr(waits, "PERIOD", 1.0)
        source.limited(stream_stall=0.5, admission=60)
        ours, theirs = socket.socketpair()
        lines: list[str] = []

        def log(_level: int, context: str, text: str) -> None:
            if context == OURS and ("the stream" in text or "the other side" in text):
                lines.append(text)
                asyncio.get_running_loop().add_reader(theirs, theirs.recv, 1 << 20)

        ctx = replace(source.ctx, log=log)
        with ours, theirs:
            fd = ours.fileno()
            result = run(domain_live_migrate(ctx, domid, fd, 0, fd, admitted=False))
        assert result.rc == 0, result
        assert lines[0].startswith("the stream has stood still for ")
        assert source.state() is GuestState.SUSPENDED

    def test_a_receiver_that_never_begins_is_given_up(self, source: Side, domid: int) -> None:
        source.limited(stream_stall=30, admission=0.5)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = ours.fileno()
            result = run(domain_live_migrate(source.ctx, domid, fd, 0, fd, admitted=False))
        assert result.rc
        assert "the receiver has not begun to take the stream for 0.5 s" in result.reason
        source.at_rest(domid)

    def test_the_other_side_takes_nothing(self, source: Side, domid: int) -> None:
        source.limited(stream_stall=0.5)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = ours.fileno()
            result = run(domain_live_migrate(source.ctx, domid, fd, 0, fd, precopy=ENDLESS))
        assert result.rc
        assert not result.suspended
        source.at_rest(domid)


class TestCancellation:
    @pytest.mark.parametrize(
        "event",
        ["save", "stream_write", "callback", "callback precopy_policy", "suspend_done"],
    )
    def test_ends_in_order(self, source: Side, domid: int, drain: Drain, event: str) -> None:
        async def work() -> SaveResult:
            fd = drain.fd()
            limits = PrecopyLimits() if event == "suspend_done" else ENDLESS
            bandwidth = 0 if event == "suspend_done" else SLOW
            ended: list[SaveResult] = []
            save = domain_live_migrate(
                source.ctx,
                domid,
                fd,
                0,
                fd,
                precopy=limits,
                bandwidth=bandwidth,
                on_end=ended.append,
            )
            task = asyncio.ensure_future(save)
            source.happenings.at(event, task.cancel)
            return await cancelled(task, ended)

        result = run(work())
        assert result.rc == Error.ABORTED
        assert "cancelled" in result.reason
        assert result.postcopy_transitioned is NEVER
        source.at_rest(domid)

    def test_while_the_guest_is_asked_the_request_is_withdrawn(
        self, source: Side, drain: Drain
    ) -> None:
        domid = source.host.create_guest("g", MEMORY, "random", behaviour=Behaviour.REFUSE)

        async def work() -> SaveResult:
            ended: list[SaveResult] = []
            save = domain_suspend(source.ctx, domid, drain.fd(), on_end=ended.append)
            task = asyncio.ensure_future(save)
            source.happenings.at("suspend_request", task.cancel)
            return await cancelled(task, ended)

        result = run(work())
        assert result.rc == Error.ABORTED
        assert not result.suspended
        source.host.set_behaviour(domid, Behaviour.NORMAL)
        assert source.host.verify(domid, 30).state is GuestState.RUNNING

    def test_while_the_helper_is_blocked_in_a_write(self, source: Side, domid: int) -> None:
        ours, theirs = socket.socketpair()

        async def work() -> SaveResult:
            ended: list[SaveResult] = []
            fd = ours.fileno()
            save = domain_live_migrate(
                source.ctx, domid, fd, 0, fd, precopy=ENDLESS, on_end=ended.append
            )
            task = asyncio.ensure_future(save)
            source.happenings.at("callback precopy_policy", task.cancel)
            return await cancelled(task, ended)

        with ours, theirs:
            result = run(work())
        assert result.rc == Error.ABORTED
        assert "logdirty_off" not in source.happenings.names(), "its own error path ran"
        source.at_rest(domid)

    def test_also_when_it_comes_twice_and_before_the_start(
        self, source: Side, domid: int, drain: Drain
    ) -> None:
        async def work() -> SaveResult:
            ended: list[SaveResult] = []
            save = domain_suspend(source.ctx, domid, drain.fd(), on_end=ended.append)
            task = asyncio.ensure_future(save)
            for _ in range(2):
                await asyncio.sleep(0)
                task.cancel()
            return await cancelled(task, ended)

        assert run(work()).rc == Error.ABORTED
        assert source.state() is GuestState.RUNNING


class TestPostcopy:
    def test_a_journal_that_cannot_be_written_fails_the_transition(
        self, source: Side, destination: Side, domid: int
    ) -> None:
        def full() -> None:
            raise OSError(28, "No space left on device")

        saved, restored = run(
            live_migrate(source, destination, domid, MemoryStrategy.POSTCOPY, on_transition=full)
        )
        assert saved.rc
        assert saved.postcopy_transitioned is FAILED
        assert saved.suspended
        assert "No space left" in saved.reason
        assert restored.rc
        assert not restored.postcopy_resumed
        assert destination.host.domains() == []
        source.at_rest(domid)

    def test_a_cancellation_in_the_transition_is_before_the_point_of_no_return(
        self, source: Side, destination: Side, domid: int
    ) -> None:
        saved, restored = run(
            live_migrate(
                source,
                destination,
                domid,
                MemoryStrategy.POSTCOPY,
                cancel_save_at="postcopy_transition",
            )
        )
        assert saved.rc == Error.ABORTED
        assert saved.postcopy_transitioned is FAILED
        assert restored.rc
        assert not restored.postcopy_resumed
        assert restored.domid is None
        source.at_rest(domid)

    def test_the_link_breaks_after_the_transition(
        self, source: Side, destination: Side, domid: int
    ) -> None:
        """The guest may have run there: DONE, though the save has failed."""
        destination.happenings.at("postcopy_resume_done", kill_helper("restore"))
        saved, restored = run(
            live_migrate(
                source,
                destination,
                domid,
                MemoryStrategy.POSTCOPY,
                precopy=PrecopyLimits(0, 0),
                bandwidth=1 << 20,
            )
        )
        assert saved.rc == Error.FAIL
        assert saved.postcopy_transitioned is DONE
        assert saved.suspended
        assert source.state() is GuestState.SUSPENDED
        assert restored.rc == Error.FAIL
        assert restored.postcopy_resumed
        assert destination.host.domains() == []

    def test_a_plain_suspend_never_transitions(
        self, source: Side, domid: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "stream"
        with path.open("wb") as file:
            result = run(domain_suspend(source.ctx, domid, file.fileno(), SUSPEND_LIVE))
        assert result.postcopy_transitioned is NEVER
        assert not any("POSTCOPY" in name for name in names(path))
