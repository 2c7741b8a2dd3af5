"""The bytes of an inspected stream, counted and bounded, with or without seeking."""

from __future__ import annotations

import io
from typing import BinaryIO, Final

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import records

CHUNK: Final = 1 << 20
"""Bytes that are read at once, at most."""


class Source:
    """Reads `file` from its position on; `offset` counts from there.

    It works on pipes. Memory is allocated as bytes arrive, never because a length field says so.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.offset = 0
        self._file = file
        self._base = file.tell() if file.seekable() else None

    def read_some(self, size: int) -> bytes:
        """Read up to `size` bytes, fewer only at the end of the stream."""
        gathered = bytearray()
        while len(gathered) < size:
            chunk = self._file.read(min(size - len(gathered), CHUNK))
            if not chunk:
                break
            gathered += chunk
        self.offset += len(gathered)
        return bytes(gathered)

    def read(self, size: int, what: str) -> bytes:
        """Read exactly `size` bytes of `what`. Raises DecodeError if the stream ends before."""
        data = self.read_some(size)
        if len(data) < size:
            raise self._ends(what, size - len(data))
        return data

    def skip(self, size: int, what: str) -> None:
        """Skip `size` bytes of `what`. Raises DecodeError if the stream ends before."""
        if self._base is not None and size > CHUNK:
            # Seeking past the end is not an error, so the last byte is read.
            end = self.offset + size
            self._file.seek(self._base + end - 1)
            if self._file.read(1):
                self.offset = end
                return
            self.offset = self._file.seek(0, io.SEEK_END) - self._base
            raise self._ends(what, end - self.offset)
        while size:
            chunk = self.read_some(min(size, CHUNK))
            if not chunk:
                raise self._ends(what, size)
            size -= len(chunk)

    def skip_rest(self) -> None:
        """Skip all that is left."""
        if self._base is not None:
            self.offset = self._file.seek(0, io.SEEK_END) - self._base
            return
        while self.read_some(CHUNK):
            pass

    def finish_record(self, length: int, what: str) -> None:
        """Read and check the padding of a record with a body of `length` bytes."""
        offset = self.offset
        padding = self.read(records.padding(length), f"{what} padding")
        records.check_padding(padding, what, offset)

    def _ends(self, what: str, missing: int) -> DecodeError:
        return DecodeError(
            what, self.offset, f"the stream ends here, want at least {missing} bytes more"
        )
