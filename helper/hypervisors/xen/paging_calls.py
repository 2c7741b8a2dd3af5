"""XENMEM_paging_op by the hundred: what xc_mem_paging_nominate, _evict and _load do for one page.

libxenctrl makes at least one hypercall for each operation on a page. These are put into multicalls,
so that the cost of a page is near that of Xen's own work.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from contextlib import closing
from functools import cache

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.libraries import Prototypes, call_error, load
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.pfns import Pfns

EVICTED_AT_ONCE: Final = 512
LOADED_AT_ONCE: Final = 64

_SONAME: Final = "libxencall.so.1"
"""Its ABI is stable: all supported releases have this one."""

_HANDLE: Final = ctypes.c_void_p
_PROTOTYPES: Final[Prototypes] = {
    "xencall_open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "xencall_close": (ctypes.c_int, (_HANDLE,)),
    "xencall_alloc_buffer_pages": (ctypes.c_void_p, (_HANDLE, ctypes.c_size_t)),
    "xencall_free_buffer_pages": (None, (_HANDLE, ctypes.c_void_p, ctypes.c_size_t)),
    "xencall2": (ctypes.c_int, (_HANDLE, ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64)),
}

_MEMORY_OP: Final = 12
_MULTICALL: Final = 13
"""__HYPERVISOR_*."""
_PAGING_OP: Final = 20
"""XENMEM_paging_op."""
_NOMINATE: Final = 0
_EVICT: Final = 1
_PREP: Final = 2

_NOBODY: Final = 0x7FEF
"""A domid that is never given: the last one below DOMID_FIRST_RESERVED."""

_WORD: Final = 8
_ENTRY_WORDS: Final = 8
"""`struct multicall_entry`: op, result, six arguments."""
_RESULT: Final = 1
_OP_WORDS: Final = 3
"""`xen_mem_paging_op_t`: u8 op and u16 domain (from its third byte on), buffer, gfn."""
_BUFFER: Final = 1
_GFN: Final = 2


@cache
def _library() -> ctypes.CDLL:
    return load(_SONAME, _PROTOTYPES)


def why_no_paging() -> str:
    """Why no domain can be paged here, as far as that can be known without one; "" if it can.

    do_memory_op: a Xen that is not built with memory paging does not know the operation, and one
    that is looks for the domain first.
    """
    try:
        with closing(PagingCalls(_NOBODY)) as calls:
            calls.evict_again(0)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return "this Xen is not built with memory paging (CONFIG_MEM_PAGING)"
        if error.errno != errno.ESRCH:
            return error.strerror or str(error)
    return ""


class _Part(NamedTuple):
    """The first items of a multicall: what must be in their entries before it, the results of their
    last operations after it, and how many calls they are."""

    entries: memoryview
    template: memoryview
    results: memoryview
    calls: int


class _Multicall:
    """A list of hypercalls in memory that Xen can reach: for each item, one XENMEM_paging_op after
    the other."""

    def __init__(
        self, words: memoryview, address: int, domid: int, ops: tuple[int, ...], items: int
    ) -> None:
        """Lay it out in `words`, which are at `address`: the entries, then the operations."""
        self._ops = len(ops)
        calls = items * self._ops
        start = calls * _ENTRY_WORDS
        self._entries = words[:start]
        self.address = address
        self.operations = words[start : start + calls * _OP_WORDS]
        # Xen leaves nothing in an entry but its result (a debug build overwrites the rest).
        entries = array("Q")
        for call in range(calls):
            place = address + (start + call * _OP_WORDS) * _WORD
            entries.extend((_MEMORY_OP, 0, _PAGING_OP, place, 0, 0, 0, 0))
            self.operations[call * _OP_WORDS] = ops[call % self._ops] | domid << 16
        self._template = memoryview(entries)
        self.part = cache(self._part)
        """The part of so many items."""

    def gfns(self, op: int) -> memoryview:
        """The pages that operation number `op` of each item is to work on."""
        return self.operations[op * _OP_WORDS + _GFN :: self._ops * _OP_WORDS]

    def _part(self, items: int) -> _Part:
        calls = items * self._ops
        entries = self._entries[: calls * _ENTRY_WORDS]
        last = (self._ops - 1) * _ENTRY_WORDS + _RESULT
        results = entries[last :: self._ops * _ENTRY_WORDS]
        return _Part(entries, self._template[: calls * _ENTRY_WORDS], results, calls)


def _words(ops: int, items: int) -> int:
    return ops * items * (_ENTRY_WORDS + _OP_WORDS)


class PagingCalls:
    """A domain's. Raises OSError if libxencall or its device is missing, ENOMEM without memory."""

    def __init__(self, domid: int) -> None:
        self._domid = domid
        self._library = _library()
        self._xencall2 = self._library.xencall2
        self._handle: int | None = self._library.xencall_open(None, 0)
        if not self._handle:
            raise call_error("xencall_open")
        self._free = 0
        """Bytes of the buffer that have been given out."""
        words = _words(2, EVICTED_AT_ONCE) + _words(1, LOADED_AT_ONCE) + _words(3, 1)
        self._pages = LOADED_AT_ONCE + -(-words * _WORD // PAGE_SIZE)
        self._address: int | None = self._library.xencall_alloc_buffer_pages(
            self._handle, self._pages
        )
        if not self._address:
            error = call_error(f"xencall_alloc_buffer_pages of {self._pages} pages")
            self.close()
            raise error
        buffer = (ctypes.c_char * (self._pages * PAGE_SIZE)).from_address(self._address)
        self._buffer = memoryview(buffer).cast("B")
        self._contents = self._buffer[: self._given(LOADED_AT_ONCE * PAGE_SIZE)]
        self._out = self._multicall((_NOMINATE, _EVICT), EVICTED_AT_ONCE)
        self._out_gfns = self._out.gfns(0), self._out.gfns(1)
        self._in = self._multicall((_PREP,), LOADED_AT_ONCE)
        self._in_gfns = self._in.gfns(0)
        for page in range(LOADED_AT_ONCE):
            self._in.operations[page * _OP_WORDS + _BUFFER] = self._address + page * PAGE_SIZE
        self._again = self._multicall((_PREP, _NOMINATE, _EVICT), 1)

    def _given(self, size: int) -> int:
        """Give out so many bytes more; returns where they end."""
        self._free += size
        return self._free

    def _multicall(self, ops: tuple[int, ...], items: int) -> _Multicall:
        assert self._address is not None
        start = self._free
        words = self._buffer[start : self._given(_words(len(ops), items) * _WORD)].cast("Q")
        return _Multicall(words, self._address + start, self._domid, ops, items)

    def close(self) -> None:
        """Give back the memory; a second time does nothing."""
        if self._handle:
            if self._address:
                self._library.xencall_free_buffer_pages(self._handle, self._address, self._pages)
            self._library.xencall_close(self._handle)
            self._handle = self._address = None

    def evict(self, gfns: Pfns) -> list[int]:
        """Nominate and evict up to EVICTED_AT_ONCE pages. Returns those that Xen would not let go
        (EBUSY): they have no page, or it is in use. Raises OSError: ESRCH if the domain is gone,
        ENODEV if paging is off."""
        count = len(gfns)
        for places in self._out_gfns:
            places[:count] = gfns
        if not self._call(self._out, count):
            return []
        return [gfns[item] for item in self._failed(self._out, count, "evict", errno.EBUSY)]

    def evict_again(self, gfn: int) -> bool:
        """Try again to evict a page that was refused, whatever has become of it: nominated, or
        asked for since it was. Returns False if Xen still refuses."""
        for op in range(3):
            self._again.gfns(op)[0] = gfn
        failed = self._call(self._again, 1)
        return not failed or not self._failed(self._again, 1, "evict", errno.EBUSY)

    def load(self, first: int, data: memoryview) -> None:
        """Load up to LOADED_AT_ONCE pages, from `first` on. Those that are not paged out stay as
        they are (ENOENT). Raises OSError: ENOMEM if there is no memory for one, ESRCH if the
        domain is gone, ENODEV if paging is off."""
        size = data.nbytes
        count = size // PAGE_SIZE
        self._contents[:size] = data
        gfns = self._in_gfns
        for item in range(count):
            gfns[item] = first + item
        if self._call(self._in, count):
            self._failed(self._in, count, "load", errno.ENOENT)

    def _call(self, multicall: _Multicall, items: int) -> bool:
        """Returns whether any item has failed."""
        entries, template, results, calls = multicall.part(items)
        entries[:] = template
        if self._xencall2(self._handle, _MULTICALL, multicall.address, calls) < 0:
            raise call_error(f"multicall of {calls}, domain {self._domid}")
        return any(results)

    def _failed(self, multicall: _Multicall, items: int, what: str, expected: int) -> list[int]:
        """The items that have failed with the errno `expected`; another one is raised."""
        failed = []
        for item, result in enumerate(multicall.part(items).results):
            if not result:
                continue
            errnoval = (1 << 64) - result
            if errnoval != expected:
                raise OSError(
                    errnoval,
                    f"xc_mem_paging_{what}, domain {self._domid}: {os.strerror(errnoval)}",
                )
            failed.append(item)
        return failed
