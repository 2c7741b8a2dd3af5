"""Verify mode: the contents of a stream's last records are compared with a domain's memory."""

from __future__ import annotations

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, PageSource
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.pfns import Pfns

_AT_ONCE: Final = 64
"""Pages."""
_LOGGED: Final = 16
"""Differences that are logged one by one."""


class PageComparer:
    """As in libxc, a difference is logged but is not a failure."""

    def __init__(self, domain: PageSource, reader: StreamInput, reporter: Reporter) -> None:
        self._domain = domain
        self._reader = reader
        self._reporter = reporter
        self._mismatches = 0

    def compare(self, pfns: Pfns) -> None:
        """Read the contents of these pages, which the domain has."""
        views = self._domain.foreign_map(pfns)
        scratch = memoryview(bytearray(_AT_ONCE * PAGE_SIZE))
        first = 0
        try:
            for view in views:
                for start in range(0, len(view), len(scratch)):
                    there = view[start : start + len(scratch)]
                    came = scratch[: len(there)]
                    self._reader.readinto([came], "PAGE_DATA")
                    end = first + len(there) // PAGE_SIZE
                    if came != there:
                        self._tell_mismatches(pfns[first:end], there, came)
                    first = end
        finally:
            self._domain.foreign_unmap(views)

    def tell_total(self) -> None:
        if self._mismatches:
            text = f"verify failed for {self._mismatches} pages in all"
            self._reporter.log(XentoollogLevel.ERROR, text)

    def _tell_mismatches(self, pfns: Pfns, there: memoryview, came: memoryview) -> None:
        for pfn, start in zip(pfns, range(0, len(there), PAGE_SIZE), strict=True):
            if there[start : start + PAGE_SIZE] == came[start : start + PAGE_SIZE]:
                continue
            self._mismatches += 1
            if self._mismatches <= _LOGGED:
                self._reporter.log(XentoollogLevel.ERROR, f"verify pfn {pfn:#x} failed")
