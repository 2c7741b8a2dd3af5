"""The file that a restore reads: opens it, decodes its preface, and looks it through beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from xen_save_helper.ipc_schema.streams import libvirt_header, xl_header
from xen_save_helper.toolstack.aio import descriptors, fd_io, file_argument
from xen_save_helper.toolstack.aio.file_argument import name_of
from xen_save_helper.toolstack.aio.patience import patience
from xen_save_helper.toolstack.inspect.foreign_formats import (
    LEGACY_LIBVIRT,
    LEGACY_XL,
    LONGEST,
    NotAStreamError,
    foreign,
)


def open_stream(file: Path | int, flags: int = 0) -> int:
    """A new descriptor to read a stream from `file`, a path or an open descriptor. Raises OSError,
    also for a directory, a socket and a terminal."""
    if isinstance(file, int):
        fd = descriptors.duplicate(file)
    else:
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | flags)
        except OSError as error:
            if error.errno == errno.ENXIO and file.is_socket():
                text = f"cannot read {file}: it is a socket; pipe what comes from it into `-`"
                raise OSError(errno.ENXIO, text) from None
            raise
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        try:
            file_argument.check_direction(fd, writing=False)
            file_argument.refuse_terminal(fd, writing=False)
        except OSError as error:
            raise OSError(error.errno, f"cannot read {name_of(file)}: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.asynccontextmanager
async def opened(file: Path | int, limit: float) -> AsyncIterator[int]:
    """A context with the descriptor of `open_stream`; a path's is blocking. Raises TimeoutError if
    nobody writes to a FIFO within `limit` seconds."""
    fd = open_stream(file, os.O_NONBLOCK)
    try:
        if not isinstance(file, int):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                await _readable(fd, file, limit)
            os.set_blocking(fd, True)
        yield fd
    finally:
        os.close(fd)


async def _readable(fd: int, path: Path, limit: float) -> None:
    """Wait for the first byte from the writer of a FIFO, or its end."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(fd, came.set)
    try:
        async with patience(limit):
            await came.wait()
    except TimeoutError:
        raise TimeoutError(f"{path}: nobody has written to it within {limit:g} s") from None
    finally:
        loop.remove_reader(fd)


async def read_preface(fd: int, file: Path | int, limit: float) -> bytes | None:
    """Read all before the libxl stream: the configuration in the xl header, or None for the XML in
    a file of `virsh save`.

    Raises DecodeError (NotAStreamError for a known other format), EOFError, OSError, and
    TimeoutError if nothing comes for `limit` seconds.
    """

    async def read(size: int) -> bytes:
        return await fd_io.read_exactly(fd, size, limit=limit, what=name_of(file))

    if stat.S_ISREG(os.fstat(fd).st_mode):
        # A file of another format may be shorter than a header.
        _refuse_foreign(os.pread(fd, LONGEST, os.lseek(fd, 0, os.SEEK_CUR)))
    start = await read(xl_header.HEADER_SIZE)
    if start.startswith(libvirt_header.MAGIC):
        rest = await read(libvirt_header.HEADER_SIZE - len(start))
        header = libvirt_header.decode_header(start + rest)
        await read(header.xml_len)
        if header.version < libvirt_header.VERSION:
            raise NotAStreamError(LEGACY_LIBVIRT)
        return None
    _refuse_foreign(start)
    fields = xl_header.decode_header(start)
    data = await read(fields.optional_data_len)
    if not fields.mandatory_flags & xl_header.MANDATORY_STREAM_V2:
        raise NotAStreamError(LEGACY_XL)
    return xl_header.decode_optional_data(fields, data)


def _refuse_foreign(front: bytes) -> None:
    if front.startswith((xl_header.MAGIC, libvirt_header.MAGIC)):
        return
    if (known := foreign(front)) is not None:
        raise NotAStreamError(known)


def end_of_stream(fd: int, start: int) -> int:
    """The end of the stream that begins at position `start` of the regular file `fd`, whose own
    position stays. Raises DecodeError, with offsets from `start`, if the stream is not whole."""
    # It imports numpy, which a save does not need.
    from xen_save_helper.toolstack.inspect.summary import Summary
    from xen_save_helper.toolstack.inspect.walk import inspect

    before = os.lseek(fd, 0, os.SEEK_CUR)
    os.lseek(fd, start, os.SEEK_SET)
    summary = Summary()
    try:
        with io.BufferedReader(io.FileIO(fd, closefd=False)) as file:
            entries = list(inspect(file, summary))
    finally:
        os.lseek(fd, before, os.SEEK_SET)
    return start + (entries[-1].offset if entries[-1].name == "TRAILING" else summary.octets)
