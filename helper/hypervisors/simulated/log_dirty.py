"""A domain's log-dirty mode: what its vCPU has written, by comparing its write counters with those
of the time before.

By the interpreter's own operations on bytes and long numbers: to load numpy would take longer than
most saves take to compare, and as much memory as a save has otherwise.
"""

from __future__ import annotations

import mmap
from typing import Final

from xen_save_helper.helper.hypervisors.interface import Bitmap

_COUNTER: Final = 4
"""Bytes of a page's counter (see `shared.SharedMemory.writes`), little-endian."""
_PART: Final = 1 << 16
"""Counters that are compared at once; mostly they are the same as before."""
_BLOCK: Final = 1 << 10
"""Counters of a part that differs, compared at once."""
_IS_SET: Final = bytes([0]) + bytes([1]) * 255
_IS_ODD: Final = bytes([0, 1]) * 128


class LogDirty:
    """From log-dirty mode's beginning; `counters` are the domain's, of which `pages` count."""

    def __init__(self, counters: mmap.mmap, pages: int) -> None:
        self._counters = counters
        self._seen = [self._read(first, pages) for first in range(0, pages, _PART)]
        self._odd: set[int] = set()
        """The first counters of the blocks with pages that were being written when they were read:
        these are dirty as long as they are written, though their counters stay as they are."""
        for number in range(len(self._seen)):
            self._note_odd(number)

    def clean(self, dirty: Bitmap) -> None:
        """Set in `dirty` which pages were written since the last call, or are being written."""
        pages = len(dirty)
        dirty[:] = bytes(pages)
        for number, first in enumerate(range(0, pages, _PART)):
            now = self._read(first, pages)
            if number == len(self._seen):
                self._seen.append(b"")
            before = self._seen[number].ljust(len(now), b"\0")
            if now == before and not any(first <= odd < first + _PART for odd in self._odd):
                continue
            self._seen[number] = now
            for start in range(0, len(now), _BLOCK * _COUNTER):
                part = slice(start, start + _BLOCK * _COUNTER)
                pfn = first + start // _COUNTER
                if now[part] != before[part] or pfn in self._odd:
                    bits = _written(now[part], before[part])
                    dirty[pfn : pfn + len(bits)] = bits
            self._note_odd(number)

    def _read(self, first: int, pages: int) -> bytes:
        return self._counters[first * _COUNTER : min(first + _PART, pages) * _COUNTER]

    def _note_odd(self, number: int) -> None:
        first = number * _PART
        self._odd -= set(range(first, first + _PART, _BLOCK))
        odd = self._seen[number][::_COUNTER].translate(_IS_ODD)
        found = odd.find(1)
        while found >= 0:
            block = found // _BLOCK * _BLOCK
            self._odd.add(first + block)
            found = odd.find(1, block + _BLOCK)


def _written(now: bytes, before: bytes) -> bytes:
    """A byte for each counter: 1 if it differs, or is odd."""
    size = len(now)
    differ = int.from_bytes(now, "little") ^ int.from_bytes(before, "little")
    changed = differ.to_bytes(size, "little").translate(_IS_SET)
    written = int.from_bytes(now[::_COUNTER].translate(_IS_ODD), "little")
    for byte in range(_COUNTER):
        written |= int.from_bytes(changed[byte::_COUNTER], "little")
    return written.to_bytes(size // _COUNTER, "little")
