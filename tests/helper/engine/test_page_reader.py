"""The contents of records, from a stream to a domain's pages."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine.page_reader import PageReader
from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.ipc_schema.errors import StreamEndError
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, run_of

pytestmark = pytest.mark.usefixtures("no_leaks")

PAGES = 4096


class Memory:
    """A domain's memory. `lacks` is a pfn that cannot be mapped."""

    def __init__(self) -> None:
        self.pages = memoryview(bytearray(PAGES * PAGE_SIZE))
        self.mapped: list[int] = []
        self.most = 0
        self.lacks = -1
        self.keeps = False

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        assert writable
        if self.lacks in pfns:
            raise OSError(errno.EINVAL, f"pfn {self.lacks} has no page")
        views = [self.pages[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] for pfn in pfns]
        self.mapped += map(id, views)
        self.most = max(self.most, len(self.mapped))
        return views

    def foreign_unmap(self, views: list[memoryview]) -> None:
        if self.keeps:
            raise OSError(errno.EIO, "no page is unmapped any more")
        for view in views:
            self.mapped.remove(id(view))
            view.release()

    def contents(self, pfns: Pfns) -> bytes:
        return b"".join(self.pages[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] for pfn in pfns)


def send(far: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=far.sendall, args=(data,))
    thread.start()
    return thread


def take_the_rest(near: socket.socket, far: socket.socket, sender: threading.Thread) -> None:
    drain = threading.Thread(target=lambda: [*iter(lambda: near.recv(1 << 20), b"")])
    drain.start()
    sender.join()
    far.close()
    drain.join()


def test_each_record_goes_to_its_pages(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Large and small ones, in any order, and pages that come a second time."""
    near, far = ends
    memory = Memory()
    stream = StreamInput(near.fileno(), abort)
    reader = PageReader(memory, stream)
    records = [
        run_of(1024, 1024),
        pfns_of([7]),
        pfns_of(range(4000, 2000, -2)),
        run_of(1024, 1024),
        pfns_of(range(0, 20, 2)),
        run_of(2048, 768),
    ]
    for pfns in records:
        contents = os.urandom(len(pfns) * PAGE_SIZE)
        sender = send(far, contents + b"a header")
        reader.read(pfns)
        sender.join()
        assert memory.contents(pfns) == contents
        assert stream.read(8, "header") == b"a header"
    assert memory.most <= 2 * 1024
    reader.finish()
    assert not memory.mapped
    reader.finish()


def test_a_page_of_the_rest_that_cannot_be_mapped(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    memory = Memory()
    memory.lacks = 1000
    reader = PageReader(memory, StreamInput(near.fileno(), abort))
    sender = send(far, bytes(500 * PAGE_SIZE))
    with pytest.raises(OSError, match="pfn 1000 has no page"):
        reader.read(run_of(0, 1024))
    take_the_rest(near, far, sender)
    reader.finish()
    assert not memory.mapped


def test_a_stream_that_ends_amid_the_contents(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    memory = Memory()
    reader = PageReader(memory, StreamInput(near.fileno(), abort))
    far.sendall(bytes(10 * PAGE_SIZE))
    far.close()
    with pytest.raises(StreamEndError, match="PAGE_DATA at offset 0xa000"):
        reader.read(run_of(0, 1024))
    reader.finish()
    assert not memory.mapped


def test_pages_that_cannot_be_unmapped(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    memory = Memory()
    reader = PageReader(memory, StreamInput(near.fileno(), abort))
    sender = send(far, bytes(2048 * PAGE_SIZE))
    reader.read(run_of(0, 1024))
    memory.keeps = True
    with pytest.raises(OSError, match="no page is unmapped any more"):
        reader.read(run_of(1024, 1024))
    take_the_rest(near, far, sender)
    memory.keeps = False
    reader.finish()
