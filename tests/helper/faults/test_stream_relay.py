from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helper.faults.streams import (
    AGAIN,
    CONTEXT,
    END,
    HEADERS,
    LIMIT,
    PAGES,
    STATIC,
    STREAM,
    job,
    page,
    page_data,
    read,
    record,
    relay,
    written,
)
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.faults.seams import of_helper
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.records import MAX_LENGTH
from xen_save_helper.ipc_schema.trace import Trace

NOTHING = "stream@0=flip; stream@0=flip"
"""Two faults that undo each other: the stream is relayed."""

LIBXL = b"what follows is libxl's"

PAGES_AT = len(HEADERS + STATIC)
CONTEXT_AT = len(HEADERS + STATIC + PAGES + AGAIN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stream"


def turned(stream: bytes, offset: int, bit: int = 0) -> bytes:
    return stream[:offset] + bytes([stream[offset] ^ 1 << bit]) + stream[offset + 1 :]


@given(at_once=st.integers(1, 9000))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_passes(file: Path, at_once: int) -> None:
    file.unlink(missing_ok=True)
    assert written(NOTHING, file, at_once=at_once) == STREAM


def test_what_is_no_libxc_stream_passes_too(file: Path) -> None:
    octets = b"no stream" * 1000
    assert written(NOTHING, file, octets) == octets
    for stream in (b"", b"short", octets, STREAM[:-10]):
        assert read(NOTHING, file, stream) == stream


@pytest.mark.parametrize(
    ("plan", "offset", "bit"),
    [
        ("stream@0=flip", 0, 0),
        ("stream@100=flip(7)", 100, 7),
        ("first-byte=flip(3)", 0, 3),
        ("record.libxc.PAGE_DATA:{}=flip", PAGES_AT, 0),
        ("record.libxc.PAGE_DATA:{}#2=flip", PAGES_AT + len(PAGES), 0),
        ("page@3=flip", PAGES_AT + 8 + 8 + 3 * 8, 0),
        ("page@5=flip", PAGES_AT + 8 + 8 + 3 * 8 + 4096, 0),
        ("page@4=flip", PAGES_AT + 8 + 8 + 8, 0),
        ("page@5#2=flip", PAGES_AT + len(PAGES) + 8 + 8 + 8, 0),
    ],
)
def test_where_a_fault_strikes(file: Path, plan: str, offset: int, bit: int) -> None:
    assert written(plan.format("write"), file) == turned(STREAM, offset, bit)
    assert read(plan.format("read"), file) == turned(STREAM, offset, bit)


TOO_LONG = (MAX_LENGTH + 8).to_bytes(4, "little")
NO_SUCH_TYPE = (0x7FFFFF00).to_bytes(4, "little")
BEFORE, AFTER = HEADERS + STATIC + PAGES, CONTEXT + END


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("drop", BEFORE + AFTER),
        ("duplicate", BEFORE + AGAIN + AGAIN + AFTER),
        ("reorder", BEFORE + CONTEXT + AGAIN + END),
        ("truncate", BEFORE + AGAIN[: 8 + (len(AGAIN) - 8) // 2] + AFTER),
        ("oversize", BEFORE + AGAIN[:4] + TOO_LONG + AGAIN[8:] + AFTER),
        ("wrong-number", BEFORE + NO_SUCH_TYPE + AGAIN[4:] + AFTER),
    ],
)  # fmt: skip
def test_what_becomes_of_a_record(file: Path, action: str, expected: bytes) -> None:
    assert written(f"record.libxc.PAGE_DATA:write#2={action}", file) == expected
    assert read(f"record.libxc.PAGE_DATA:read#2={action}", file) == expected


def test_a_stream_that_ends_within_a_record(file: Path) -> None:
    part = BEFORE + AGAIN[:100]
    expected = BEFORE + NO_SUCH_TYPE + AGAIN[4:100]
    assert read("record.libxc.PAGE_DATA:read#2=wrong-number", file, part) == expected


def test_garbage_is_the_same_with_the_same_seed(file: Path) -> None:
    plan = "record.libxc.PAGE_DATA:write#2=garbage; seed={}"
    first, again, other = (written(plan.format(seed), file) for seed in (1, 1, 2))
    assert first == again != other
    head = BEFORE + AGAIN[:8]
    assert first[: len(head)] == head
    assert first[-len(AFTER) :] == AFTER
    assert len(first) == len(STREAM)
    assert first != STREAM


def test_records_without_a_body(file: Path) -> None:
    assert written("record.libxc.STATIC_DATA_END:write=truncate", file) == (
        HEADERS + STATIC[:4] + PAGES + AGAIN + CONTEXT + END
    )
    file.unlink()
    garbage = written("record.libxc.STATIC_DATA_END:write=garbage", file)
    assert garbage != STREAM
    assert garbage[len(HEADERS) + 8 :] == STREAM[len(HEADERS) + 8 :]
    file.unlink()
    assert written("record.libxc.END:write=reorder", file) == STREAM


@pytest.mark.parametrize(
    ("action", "errnoval"),
    [
        ("cut", errno.EPIPE),
        ("epipe", errno.EPIPE),
        ("enospc", errno.ENOSPC),
        ("reset", errno.ECONNRESET),
    ],
)
@pytest.mark.parametrize(
    ("point", "passed"),
    [
        ("stream@20", STREAM[:20]),
        ("record.libxc.HVM_CONTEXT:write", STREAM[:CONTEXT_AT]),
        ("record.libxc.END:write", STREAM[: -len(END)]),
    ],
)
def test_a_stream_that_cannot_be_written_on(
    file: Path, action: str, errnoval: int, point: str, passed: bytes
) -> None:
    with pytest.raises(OSError, match=os.strerror(errnoval)) as failed:
        written(f"{point}={action}", file, at_once=1000)
    assert failed.value.errno == errnoval
    assert file.read_bytes() == passed


@pytest.mark.parametrize(("action", "errnoval"), [("cut", 0), ("reset", errno.ECONNRESET)])
def test_a_stream_that_cannot_be_read_on(file: Path, action: str, errnoval: int) -> None:
    file.write_bytes(STREAM)
    found, failure = b"", 0
    with relay(f"record.libxc.HVM_CONTEXT:read={action}", Operation.RESTORE, file) as ends:
        try:
            while part := os.read(ends.engine, 1000):
                found += part
        except OSError as error:
            failure = error.errno or -1
    assert (found, failure) == (STREAM[:CONTEXT_AT], errnoval)


def test_nothing_is_read_behind_the_end(file: Path) -> None:
    file.write_bytes(STREAM + LIBXL)
    with relay(NOTHING, Operation.RESTORE, file) as ends:
        found = b""
        while part := os.read(ends.engine, 1000):
            found += part
        assert found == STREAM
        assert os.read(ends.real, 1000) == LIBXL


@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        (RecordType.POSTCOPY_TRANSITION, "postcopy_transition"),
        (RecordType.CHECKPOINT, "checkpoint"),
    ],
)
def test_nothing_is_read_behind_a_record_whose_callback_reads(
    file: Path, kind: RecordType, callback: str
) -> None:
    first = HEADERS + STATIC + record(kind)
    file.write_bytes(first + LIBXL + END)
    with relay(NOTHING, Operation.RESTORE, file) as ends:
        found = b""
        while len(found) < len(first):
            found += os.read(ends.engine, 1000)
        assert found == first
        assert os.read(ends.real, len(LIBXL)) == LIBXL
        ends.streams.answered("suspend")
        assert os.get_blocking(ends.engine)
        ends.streams.answered(callback)
        assert os.read(ends.engine, 1000) == END


def test_what_was_written_is_there_before_the_callback_that_writes(file: Path) -> None:
    first = STREAM.removesuffix(END) + record(RecordType.POSTCOPY_TRANSITION)
    with relay("stream@20=stall(0.2)", Operation.SAVE, file) as ends:
        pending = first
        while pending:
            pending = pending[os.write(ends.engine, pending) :]
        ends.streams.calling("postcopy_transition")
        assert file.read_bytes() == first
        os.write(ends.real, LIBXL)
        os.lseek(ends.real, 0, os.SEEK_END)
        os.write(ends.engine, END)
    assert file.read_bytes() == first + LIBXL + END


def test_short_reads(file: Path) -> None:
    file.write_bytes(STREAM)
    with relay("stream@16=short-writes(7)", Operation.RESTORE, file) as ends:
        parts = []
        while part := os.read(ends.engine, 1000):
            parts.append(part)
    assert b"".join(parts) == STREAM
    assert max(map(len, parts[20:])) <= 7


def test_short_writes(file: Path) -> None:
    stream = HEADERS + b"".join(page_data(*range(20)) for _ in range(20)) + END
    counts = []
    with relay("stream@40=short-writes(3000)", Operation.SAVE, file) as ends:
        pending = stream
        while pending:
            counts.append(os.write(ends.engine, pending))
            pending = pending[counts[-1] :]
    assert file.read_bytes() == stream
    assert len(counts) > 10


def test_a_trickle(file: Path) -> None:
    started = time.monotonic()
    assert written("stream@0=trickle(50000)", file) == STREAM
    assert time.monotonic() - started > len(STREAM) / 50000


def test_a_reader_that_is_gone_is_noticed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        written(NOTHING, Path(f"/proc/self/fd/{write_end}"))
    os.close(write_end)


@pytest.mark.parametrize(
    ("action", "errnoval"), [("enospc", errno.ENOSPC), ("cut", errno.EPIPE), ("epipe", errno.EPIPE)]
)
def test_the_last_octets_of_a_back_channel_that_do_not_pass_are_told(
    action: str, errnoval: int
) -> None:
    """The engine has written all that it had to, and waits for the stream."""
    stream, sender = socket.socketpair()
    back, receiver = socket.socketpair()
    plan = parse(f"destination/back@3={action}").seeded()
    striker = of_helper(plan, Trace("helper"), pipe=True, side=Side.DESTINATION)
    restore = job(Operation.RESTORE, stream.fileno(), back.fileno())
    last = record(RecordType.POSTCOPY_COMPLETE)
    with stream, sender, back, receiver, Abort(signals=frozenset()) as abort:
        with contextlib.suppress(OSError), Streams().relayed(striker, restore, abort):
            assert os.write(back.fileno(), last) == len(last)
            assert select.select([abort.fileno()], [], [], LIMIT)[0]
        assert (abort.errnoval, abort.reason) == (
            errnoval,
            f"back channel: {os.strerror(errnoval)}",
        )


def test_pages_of_a_list_without_contents(file: Path) -> None:
    listed = page_data(3, 4, 5, kind="POSTCOPY_PFNS")
    later = page_data(4, kind="POSTCOPY_PAGE_DATA")
    stream = HEADERS + STATIC + listed + later + END
    at = len(HEADERS + STATIC) + 8 + 8 + 8
    assert written("page@4=flip", file, stream) == turned(stream, at)
    file.unlink()
    at = len(HEADERS + STATIC + listed) + 8 + 8 + 8
    assert stream[at : at + 4096] == page(4)
    assert written("page@4#2=flip", file, stream) == turned(stream, at)
