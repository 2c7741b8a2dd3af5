"""Pages of a domain that are mapped all at once, and so outlive it."""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import NamedTuple

from xen_save_helper.helper.engine.bitmaps import add, without
from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Bitmap, Domain
from xen_save_helper.ipc_schema.streams.pfns import Pfns, runs_of

_AT_ONCE = 1024


class _Run(NamedTuple):
    first: int
    pages: int
    view: memoryview


class _Mapping:
    """The pages of `bitmap`."""

    def __init__(self, domain: Domain, bitmap: Bitmap) -> None:
        self._bitmap = bytes(bitmap)
        self.views: list[memoryview] = []
        self._runs: list[_Run] = []
        position, left = 0, bitmap.count(1)
        while left:
            pfns, position = set_bits(bitmap, position, min(left, _AT_ONCE))
            left -= len(pfns)
            octets = 0
            mapped = domain.foreign_map(pfns)
            self.views += mapped
            views = iter(mapped)
            view = memoryview(b"")
            for first, count, _ in runs_of(pfns):
                if octets == len(view):
                    view, octets = next(views), 0
                self._runs.append(_Run(first, count, view[octets:][: count * PAGE_SIZE]))
                octets += count * PAGE_SIZE
        self._firsts = [run.first for run in self._runs]

    def page(self, pfn: int) -> memoryview | None:
        if not self._bitmap[pfn]:
            return None
        run = self._runs[bisect_right(self._firsts, pfn) - 1]
        start = (pfn - run.first) * PAGE_SIZE
        return run.view[start : start + PAGE_SIZE]


class KeptPages:
    """As far as a sender of pages asks for it, they are the domain: after it is gone, too."""

    def __init__(self, domain: Domain) -> None:
        self.bitmap = b""
        self.pages = 0
        self._domain = domain
        self._mappings: list[_Mapping] = []
        """The newest first."""
        self._mapped = Bitmap()

    def map(self, bitmap: Bitmap) -> None:
        """Map these pages, instead of those that were mapped for the same pfns. Raises OSError."""
        self._mappings.insert(0, _Mapping(self._domain, bitmap))
        if not len(self._mapped):
            self._mapped = Bitmap(len(bitmap))
        add(bitmap, self._mapped)

    def keep(self, bitmap: Bitmap) -> None:
        """Of those that are mapped, these are wanted. Raises OSError(EINVAL) if one is not, while
        it is not too late."""
        if pfn := without(bitmap, self._mapped).find(1) + 1:
            raise OSError(errno.EINVAL, f"pfn {pfn - 1:#x} is not mapped")
        self.bitmap = bytes(bitmap)
        self.pages = bitmap.count(1)

    def among(self, missing: Bitmap) -> Bitmap:
        """Those of the pages that are among the missing ones, too."""
        both = int.from_bytes(self.bitmap, "little") & int.from_bytes(missing, "little")
        return Bitmap(both.to_bytes(len(self.bitmap), "little"))

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """As `interface.Domain`'s, of pages that are kept."""
        del writable
        return [self._page(pfn) for pfn in pfns]

    def _page(self, pfn: int) -> memoryview:
        for mapping in self._mappings:
            if (page := mapping.page(pfn)) is not None:
                return page
        raise OSError(errno.EINVAL, f"pfn {pfn:#x} is not mapped")

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
        for mapping in self._mappings:
            self._domain.foreign_unmap(mapping.views)
        self._mappings.clear()
        self._domain.close()
