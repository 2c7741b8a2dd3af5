"""Pages of a domain that are mapped all at once, and so outlive it."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Bitmap, Domain
from xen_save_helper.ipc_schema.streams.pfns import Pfns, runs_of

_AT_ONCE = 1024


class _Run(NamedTuple):
    first: int
    pages: int
    view: memoryview


class KeptPages:
    """The pages of `bitmap`. As far as a sender of pages asks for it, they are the domain: after it
    is gone, too. Raises OSError."""

    def __init__(self, domain: Domain, bitmap: Bitmap) -> None:
        self.bitmap = bitmap
        self.pages = bitmap.count(1)
        self._domain = domain
        self._runs: list[_Run] = []
        self._mapped: list[memoryview] = []
        position, left = 0, self.pages
        while left:
            pfns, position = set_bits(bitmap, position, min(left, _AT_ONCE))
            left -= len(pfns)
            octets = 0
            mapped = domain.foreign_map(pfns)
            self._mapped += mapped
            views = iter(mapped)
            view = memoryview(b"")
            for first, count, _ in runs_of(pfns):
                if octets == len(view):
                    view, octets = next(views), 0
                self._runs.append(_Run(first, count, view[octets:][: count * PAGE_SIZE]))
                octets += count * PAGE_SIZE
        self._firsts = [run.first for run in self._runs]

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """As `interface.Domain`'s, of pages that are kept."""
        del writable
        found = []
        for pfn in pfns:
            run = self._runs[bisect_right(self._firsts, pfn) - 1]
            start = (pfn - run.first) * PAGE_SIZE
            found.append(run.view[start : start + PAGE_SIZE])
        return found

    def foreign_unmap(self, views: list[memoryview]) -> None:
        """They stay."""

    def runs_here(self) -> bool:
        """Whether the domain is here, and no longer suspended. From any thread."""
        try:
            return self._domain.getinfo().shutdown_reason is None
        except OSError:
            return False

    def is_gone(self) -> bool:
        """Whether the domain is destroyed; its pages stay as long as they are kept."""
        try:
            return self._domain.getinfo().dying
        except OSError:
            return True

    def close(self) -> None:
        """Let go of them: a domain that is destroyed is then gone."""
        self._runs.clear()
        self._domain.foreign_unmap(self._mapped)
        self._domain.close()
