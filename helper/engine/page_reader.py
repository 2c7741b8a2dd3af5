"""A restore's hot path: the contents of PAGE_DATA records, from the stream to a domain's pages,
without copying."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors.interface import PageSource
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.pfns import Pfns
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE

_FIRST: Final = 384
"""Pages that are mapped before any contents are read. They take longer to arrive than it takes to
unmap and map the others of a record of libxc's size."""
_WORTH_IT: Final = 2 * _FIRST
"""A record of fewer pages is mapped at once."""

_Views = list[memoryview]


class _Work(NamedTuple):
    """What the other thread is to unmap, and then to map."""

    done: _Views
    pfns: Pfns


class PageReader:
    """Reads the contents of one record after another.

    While the first pages of a record arrive, another thread maps the rest, after it has unmapped
    those of the record before: a quarter of the time would go into that. The last pages stay
    mapped, and the thread stays, until `finish`.
    """

    def __init__(self, domain: PageSource, reader: StreamInput) -> None:
        self._domain = domain
        self._reader = reader
        self._thread: threading.Thread | None = None
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._mapped: SimpleQueue[_Views | Exception] = SimpleQueue()
        self._done: _Views = []
        """Pages that are still mapped, and need not be."""

    def read(self, pfns: Pfns) -> None:
        """Fill these pages, which the domain has, from the stream. Raises OSError, and
        StreamEndError."""
        if len(pfns) < _WORTH_IT:
            views = self._domain.foreign_map(pfns, writable=True)
            try:
                self._fill(views)
            finally:
                self._domain.foreign_unmap(views)
            return
        # First of all: while one thread maps, another would wait for its turn.
        first = self._domain.foreign_map(pfns[:_FIRST], writable=True)
        self._start(_Work(self._done, pfns[_FIRST:]))
        self._done = first
        try:
            self._reader.readinto(first, "PAGE_DATA")
        finally:
            # However that ends, the thread answers.
            rest = self._mapped.get()
            if not isinstance(rest, Exception):
                self._done = first + rest
        if isinstance(rest, Exception):
            raise rest
        self._fill(rest)

    def finish(self) -> None:
        """Unmap all pages, and end the thread; the next `read` starts another."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        done, self._done = self._done, []
        self._domain.foreign_unmap(done)

    def _fill(self, views: _Views) -> None:
        # Another record must follow: END, at least.
        self._reader.readinto(views, "PAGE_DATA", ahead=HEADER_SIZE)

    def _start(self, work: _Work) -> None:
        self._work.put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="map the rest")
            self._thread.start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._domain.foreign_unmap(work.done)
                self._mapped.put(self._domain.foreign_map(work.pfns, writable=True))
            except Exception as error:
                self._mapped.put(error)
