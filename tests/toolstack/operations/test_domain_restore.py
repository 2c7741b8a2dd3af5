"""Restores with real helpers and real guests: no domain is left, whatever fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import MEMORY, Side, cancelled, kill_helper, live_migrate, run
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams import libxl_stream
from xen_save_helper.ipc_schema.streams.libxl_stream import EmulatorId, RecordType
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.inspect.walk import inspect
from xen_save_helper.toolstack.operations.domain_restore import domain_create_restore
from xen_save_helper.toolstack.operations.domain_save import domain_suspend
from xen_save_helper.toolstack.operations.restore import RestoreResult
from xen_save_helper.toolstack.operations.save import PostcopyTransitioned
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

pytestmark = pytest.mark.usefixtures("no_leaks")

HEADER = libxl_stream.encode_header()
LIBXC_CONTEXT = libxl_stream.encode_record(RecordType.LIBXC_CONTEXT)
END = libxl_stream.encode_record(RecordType.END)


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(host_factory("source"))


@pytest.fixture
def destination(host_factory: HostFactory) -> Side:
    return Side(host_factory("destination"))


Saved = tuple[Path, dict[str, Any]]


@pytest.fixture
def saved(source: Side, tmp_path: Path) -> Saved:
    """A saved guest: its stream in a file, and its configuration. It is suspended at the source."""
    domid = source.host.create_guest("g", MEMORY, "random")
    path = tmp_path / "stream"
    with path.open("wb") as file:
        assert run(domain_suspend(source.ctx, domid, file.fileno())).rc == 0
    return path, source.host.config(domid)


@pytest.fixture
def config(source: Side) -> dict[str, Any]:
    return source.host.config(source.host.create_guest("g", MEMORY, "random", type="pvh"))


def restore_from(
    destination: Side, config: dict[str, Any], stream: bytes | Path, name: str = "g"
) -> RestoreResult:
    if isinstance(stream, Path):
        with stream.open("rb") as file:
            return run(domain_create_restore(destination.ctx, config, name, file.fileno()))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        return run(domain_create_restore(destination.ctx, config, name, ours.fileno()))


def failed(result: RestoreResult, destination: Side, rc: int = Error.FAIL) -> str:
    """Check that the restore failed with `rc` and left nothing; return its reason."""
    assert result.rc == rc, result
    assert result.domid is None
    assert not result.postcopy_resumed
    assert destination.host.domains() == []
    assert result.reason
    return result.reason


class TestThrough:
    def test_the_domain_is_paused_and_its_memory_right(
        self, destination: Side, saved: Saved
    ) -> None:
        path, config = saved
        result = restore_from(destination, config, path)
        assert result.rc == 0, result
        assert result.domid is not None
        assert not result.postcopy_resumed
        assert destination.state() is GuestState.PAUSED
        destination.host.unpause(result.domid)
        report = destination.host.verify(result.domid, 30)
        assert report.memory_ok
        assert report.state is GuestState.RUNNING

    def test_from_a_pipe_and_under_another_name(self, destination: Side, saved: Saved) -> None:
        path, config = saved
        read, write = os.pipe()

        async def work() -> RestoreResult:
            def feed() -> None:
                with open(write, "wb", buffering=0) as pipe:
                    pipe.write(path.read_bytes())

            fed = asyncio.ensure_future(asyncio.to_thread(feed))
            result = await domain_create_restore(destination.ctx, config, "other", read)
            await fed
            return result

        result = run(work())
        os.close(read)
        assert result.rc == 0, result
        assert destination.state("other") is GuestState.PAUSED


class TestStream:
    """The contents of a stream."""

    @pytest.mark.parametrize(
        ("stream", "reason"),
        [
            (b"", "ends after 0 bytes"),
            (HEADER[:9], "ends after 9 bytes"),
            (b"GET / HTTP/1.1\r\n\r\n", "ident"),
            (HEADER, "ends after 0 bytes"),
            (HEADER + END, "no domain in the stream"),
            (HEADER + libxl_stream.encode_record(RecordType.CHECKPOINT_END), "CHECKPOINT_END"),
            (
                HEADER + libxl_stream.encode_record(RecordType.POSTCOPY_TRANSITION_END),
                "POSTCOPY_TRANSITION_END",
            ),
            (HEADER + b"\x77\0\0\0\0\0\0\0", "0x77"),
            (HEADER + b"\x03\0\0\0\xff\xff\xff\xff", "4294967295 bytes"),
            (
                HEADER
                + libxl_stream.encode_record(
                    RecordType.EMULATOR_CONTEXT,
                    libxl_stream.encode_emulator_context(EmulatorId.QEMU_UPSTREAM, 0, b"state"),
                ),
                "no device model",
            ),
            (HEADER + LIBXC_CONTEXT + b"no libxc stream, but something else", "restoring"),
        ],
    )
    def test_bad_streams_are_refused_and_leave_nothing(
        self, destination: Side, config: dict[str, Any], stream: bytes, reason: str
    ) -> None:
        assert reason in failed(restore_from(destination, config, stream), destination)

    def test_a_bad_record_after_the_helpers_part_is_named_with_its_offset(
        self, destination: Side, saved: Saved
    ) -> None:
        path, config = saved
        with path.open("rb") as file:
            (entry,) = (entry for entry in inspect(file) if entry.name == "EMULATOR_CONTEXT")
        body = entry.offset + 8
        with path.open("r+b") as file:
            file.seek(body)
            file.write(b"\xff")
        reason = failed(restore_from(destination, config, path), destination)
        assert f"libxl EMULATOR_CONTEXT at offset {body:#x}: emulator 255" in reason

    def test_an_hvm_guest_needs_its_device_models_state(
        self, destination: Side, saved: Saved
    ) -> None:
        path, config = saved
        with path.open("rb") as file:
            entries = {entry.name: entry for entry in inspect(file)}
        os.truncate(path, entries["EMULATOR_CONTEXT"].offset)
        with path.open("ab") as file:
            file.write(END)
        reason = failed(restore_from(destination, config, path), destination)
        assert "no state of the device model (EMULATOR_CONTEXT)" in reason

    @pytest.mark.parametrize("path", [b"", b"/local/domain/0", b"../0/x"])
    def test_xenstore_data_that_lead_elsewhere(
        self, destination: Side, config: dict[str, Any], path: bytes
    ) -> None:
        body = libxl_stream.encode_emulator_xenstore_data(
            EmulatorId.QEMU_UPSTREAM, 0, [(path, b"1")]
        )
        record = libxl_stream.encode_record(RecordType.EMULATOR_XENSTORE_DATA, body)
        hvm = {**config, "c_info": {**config["c_info"], "type": "hvm"}}
        result = restore_from(destination, hvm, HEADER + record)
        assert "path" in failed(result, destination)

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
    def test_a_truncated_file(self, destination: Side, saved: Saved, part: float) -> None:
        path, config = saved
        os.truncate(path, int(path.stat().st_size * part))
        failed(restore_from(destination, config, path), destination)

    def test_a_file_that_lacks_its_last_byte(self, destination: Side, saved: Saved) -> None:
        path, config = saved
        os.truncate(path, path.stat().st_size - 1)
        assert "ends after" in failed(restore_from(destination, config, path), destination)

    def test_a_peer_that_says_nothing(self, destination: Side, config: dict[str, Any]) -> None:
        destination.limited(stream_stall=0.2)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            result = run(domain_create_restore(destination.ctx, config, "g", ours.fileno()))
        assert "for 0.2 s" in failed(result, destination, Error.TIMEDOUT)


class TestDomain:
    def test_a_name_that_is_taken(self, destination: Side, saved: Saved) -> None:
        path, config = saved
        destination.host.create_guest("g", MEMORY, "idle")
        result = restore_from(destination, config, path)
        assert result.rc == Error.INVAL
        assert result.domid is None
        assert destination.state() is GuestState.RUNNING

    def test_an_invalid_configuration(self, destination: Side, saved: Saved) -> None:
        path, _ = saved
        failed(restore_from(destination, {"c_info": 1}, path), destination, Error.INVAL)


class TestHelper:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_killed(self, source: Side, destination: Side, number: signal.Signals) -> None:
        domid = source.host.create_guest("g", MEMORY, "random")
        destination.happenings.at("stream_read", kill_helper("restore", number))
        saved, restored = run(
            live_migrate(
                source,
                destination,
                domid,
                precopy=PrecopyLimits(0, 1 << 30),
                bandwidth=1 << 20,
            )
        )
        failed(restored, destination)
        assert saved.rc
        source.at_rest(domid)


class TestCancellation:
    @pytest.mark.parametrize("event", ["domain_created", "stream_read", "static_data_done"])
    def test_ends_in_order(self, source: Side, destination: Side, event: str) -> None:
        domid = source.host.create_guest("g", MEMORY, "random")
        ours, theirs = socket.socketpair()

        async def work() -> RestoreResult:
            ended: list[RestoreResult] = []
            restore = asyncio.ensure_future(
                domain_create_restore(
                    destination.ctx,
                    source.host.config(domid),
                    "g",
                    theirs.fileno(),
                    on_end=ended.append,
                )
            )
            destination.happenings.at(event, restore.cancel)
            save = asyncio.ensure_future(
                domain_suspend(source.ctx, domid, ours.fileno(), bandwidth=1 << 20)
            )
            result = await cancelled(restore, ended)
            await save
            return result

        with ours, theirs:
            result = run(work())
        assert "cancelled" in failed(result, destination, Error.ABORTED)
        source.at_rest(domid)


class TestPostcopy:
    def go(
        self, source: Side, destination: Side, on_resume: Callable[[], None] = lambda: None
    ) -> tuple[PostcopyTransitioned, RestoreResult]:
        domid = source.host.create_guest("g", MEMORY, "random")
        saved, restored = run(
            live_migrate(
                source,
                destination,
                domid,
                MemoryStrategy.POSTCOPY,
                precopy=PrecopyLimits(0, 0),
                bandwidth=2 << 20,
                on_resume=on_resume,
            )
        )
        return saved.postcopy_transitioned, restored

    def test_the_guest_runs_before_the_last_page_is_there(
        self, source: Side, destination: Side
    ) -> None:
        _, restored = self.go(source, destination)
        assert restored.rc == 0, restored
        names = destination.happenings.names()
        assert names.index("postcopy_resume_done") < names.index("helper_result")
        assert restored.domid is not None
        assert destination.host.verify(restored.domid, 30).memory_ok

    def test_a_resumption_that_fails_aborts_the_stream_and_is_reported(
        self, source: Side, destination: Side
    ) -> None:
        def refuse() -> None:
            raise OSError(28, "No space left on device")

        transitioned, restored = self.go(source, destination, refuse)
        assert transitioned is PostcopyTransitioned.DONE
        assert "No space left" in failed(restored, destination)
        assert source.state() is GuestState.SUSPENDED

    def test_a_stream_that_breaks_while_the_guest_runs(
        self, source: Side, destination: Side
    ) -> None:
        destination.happenings.at("postcopy_resume_done", kill_helper("save"))
        transitioned, restored = self.go(source, destination)
        assert transitioned is PostcopyTransitioned.DONE
        assert restored.rc == Error.FAIL
        assert restored.postcopy_resumed
        assert destination.host.domains() == []
        assert source.state() is GuestState.SUSPENDED
