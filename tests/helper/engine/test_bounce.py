"""Streams in files whose driver cannot reach mapped pages of a domain, as 9p's cannot."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine import bounce
from xen_save_helper.helper.engine.stream_io import StreamInput, StreamOutput

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZE = 3 << 20
DATA = bytes(range(251)) * (SIZE // 251 + 1)


@contextmanager
def opened(path: Path, flags: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A file that takes no mapped memory, as get_user_pages does not take a mapping of VM_PFNMAP
    (p9_get_mapped_pages)."""
    fd = os.open(path, flags)

    def unreachable(call: Any) -> Any:
        def transfer(where: int, buffers: Sequence[Any]) -> int:
            mapped = any(isinstance(memoryview(buffer).obj, mmap.mmap) for buffer in buffers)
            if where == fd and mapped:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            return int(call(where, buffers))

        return transfer

    with monkeypatch.context() as patched:
        for name in ("readv", "writev"):
            patched.setattr(os, name, unreachable(getattr(os, name)))
        yield fd
    os.close(fd)


@contextmanager
def pages(data: bytes = b"") -> Iterator[memoryview]:
    with mmap.mmap(-1, SIZE) as mapped:
        mapped[: len(data)] = data
        with memoryview(mapped) as view:
            yield view


def test_a_file_that_cannot_be_read_into_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA[: SIZE + 8])
    with pages() as view, Abort() as abort, opened(path, os.O_RDONLY, monkeypatch) as fd:
        stream = StreamInput(fd, abort)
        assert stream.read(8, "header") == DATA[:8]
        with view[:4096] as first, view[4096:] as rest:
            stream.readinto([first, rest], "pages")
        assert stream.offset == SIZE + 8
        assert bytes(view) == DATA[8 : SIZE + 8]


def test_a_file_that_cannot_be_written_from_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    flags = os.O_WRONLY | os.O_CREAT
    with pages(DATA[:SIZE]) as view, Abort() as abort, opened(path, flags, monkeypatch) as fd:
        stream = StreamOutput(fd, abort)
        stream.write([b"header", view])
        assert stream.sent == SIZE + 6
    assert path.read_bytes() == b"header" + DATA[:SIZE]


def test_memory_that_is_gone_is_still_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA[:4096])

    def nowhere(_fd: int, _buffers: Sequence[Any]) -> int:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    with Abort() as abort, open(path, "rb") as file, monkeypatch.context() as patched:
        patched.setattr(os, "readv", nowhere)
        stream = StreamInput(file.fileno(), abort)
        with pytest.raises(OSError, match="stream, pages at offset 0x0: Bad address"):
            stream.readinto([memoryview(bytearray(4096))], "pages")


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=40), length=st.integers(0, 99999))
def test_as_the_calls_themselves(sizes: list[int], length: int) -> None:
    fd = os.memfd_create("file")
    try:
        buffers = [DATA[number : number + size] for number, size in enumerate(sizes)]
        written = bounce.writev(fd, buffers)
        assert os.pread(fd, 1 << 20, 0) == b"".join(buffers)[:written]
        assert written == sum(sizes)
        os.ftruncate(fd, 0)
        os.pwrite(fd, DATA[:length], 0)
        os.lseek(fd, 0, os.SEEK_SET)
        views = [bytearray(size) for size in sizes]
        taken = bounce.readv(fd, views)
        assert taken == min(length, sum(sizes))
        assert b"".join(views)[:taken] == DATA[:taken]
    finally:
        os.close(fd)
