"""The ring between Xen and a domain's pager: one page, with requests and responses in turns.

Its layout is `vm_event_sring_t` of xen/include/public/vm_event.h (io/ring.h): four counters, and
from byte 64 on 8 entries of 400 bytes, each a request until its response has replaced it. It is the
same from Xen 4.15 to 4.22; a response has the interface version of its request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

ENTRIES: Final = 8

_REQ_PROD: Final = 0
_REQ_EVENT: Final = 1
_RSP_PROD: Final = 2
_RSP_EVENT: Final = 3
"""Indices of the counters, which are u32."""

_U32: Final = 0xFFFFFFFF

_HEADER: Final = 64
_ENTRY: Final = 400
_FIELDS: Final = struct.Struct("=IIII8xQ4xI")
"""version, flags, reason, vcpu_id, then of struct vm_event_paging: gfn, p2mt, flags."""

INTERFACE_VERSION: Final = 7
"""VM_EVENT_INTERFACE_VERSION, of Xen 4.15 to 4.22."""
REASON_MEM_PAGING: Final = 3
"""VM_EVENT_REASON_MEM_PAGING."""
VCPU_PAUSED: Final = 1 << 0
_DROP_PAGE: Final = 1 << 0


class RingRequest(NamedTuple):
    """`vm_event_request_t`, as far as it is about paging. `flags` are VM_EVENT_FLAG_*, `paging`
    MEM_PAGING_*."""

    version: int
    flags: int
    reason: int
    vcpu: int
    pfn: int
    paging: int

    @property
    def waits(self) -> bool:
        """Whether a vCPU of the guest is paused until the response. Requests of dom0
        (VM_EVENT_FLAG_FOREIGN) have dom0's vCPU, and pause none."""
        return bool(self.flags & VCPU_PAUSED)

    @property
    def dropped(self) -> bool:
        """Whether the guest has given back the page."""
        return bool(self.paging & _DROP_PAGE)


class PagingRing:
    """The pager's end of a ring in `page`, a mapping that can be written, which it initialises.

    Xen puts no request where there is one without a response: so every request needs one, in any
    order, or there is soon no place left for the vCPUs (RING_FREE_REQUESTS).
    """

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._counters = page[: 4 * 4].cast("I")
        # SHARED_RING_INIT, which Xen leaves to the pager.
        page[:_HEADER] = bytes(_HEADER)
        self._counters[_REQ_EVENT] = self._counters[_RSP_EVENT] = 1
        self._taken = 0
        self._answered = 0

    def close(self) -> None:
        """Release the view of the page."""
        self._counters.release()

    def take(self) -> list[RingRequest]:
        """The requests that have come since the last time."""
        taken = []
        for _ in range(min(self._counters[_REQ_PROD] - self._taken & _U32, ENTRIES)):
            taken.append(RingRequest(*_FIELDS.unpack_from(self._page, _place(self._taken))))
            self._taken = self._taken + 1 & _U32
        self._counters[_REQ_EVENT] = self._taken + 1 & _U32
        return taken

    def answer(self, requests: Iterable[RingRequest]) -> None:
        """Put in the responses to requests that were taken. Xen must then be notified."""
        for request in requests:
            answer = request._replace(flags=request.flags & VCPU_PAUSED)
            _FIELDS.pack_into(self._page, _place(self._answered), *answer)
            self._answered = self._answered + 1 & _U32
        self._counters[_RSP_PROD] = self._answered


def _place(number: int) -> int:
    return _HEADER + number % ENTRIES * _ENTRY
