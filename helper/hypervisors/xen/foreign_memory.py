"""libxenforeignmemory: another domain's pages in this process's address space.

A mapping is one area whatever the pfns are, so that one buffer of writev(2) holds a whole batch.
It is VM_PFNMAP memory: read, write, readv and writev work on it; splice, sendfile and O_DIRECT do
not, and a child process does not inherit it.
"""

from __future__ import annotations

import ctypes
from array import array
from functools import cache

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.libraries import Prototypes, call_error, load
from xen_save_helper.helper.hypervisors.xen.toollog import Logger
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.streams.pfns import Pfns

_SONAME: Final = "libxenforeignmemory.so.1"
"""Its ABI is stable: all supported releases have this one."""

_PROTOTYPES: Final[Prototypes] = {
    "xenforeignmemory_open": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_uint)),
    "xenforeignmemory_close": (ctypes.c_int, (ctypes.c_void_p,)),
    # fmem, dom, prot, pages, arr, err
    "xenforeignmemory_map": (
        ctypes.c_void_p,
        (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ),
    ),
    "xenforeignmemory_unmap": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
    ),
}

_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_PYBUF_READ: Final = 0x100
_PYBUF_WRITE: Final = 0x200


@cache
def _library() -> ctypes.CDLL:
    return load(_SONAME, _PROTOTYPES)


@cache
def _memory_view() -> Any:
    """`PyMemoryView_FromMemory`: address, size and whether it can be written, to a memoryview."""
    function = ctypes.pythonapi["PyMemoryView_FromMemory"]
    function.restype = ctypes.py_object
    function.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
    return function


class ForeignMemory:
    """Mappings of one domain's pages. `map` and `unmap` may be called by two threads at once.

    Raises OSError if the libraries or the device are missing.
    """

    def __init__(self, domid: int, logger: Logger | None = None) -> None:
        self._domid = domid
        self._library = _library()
        self._mapped: dict[int, tuple[int, int]] = {}
        """Address and pages, by the view's id."""
        self._handle: int | None = self._library.xenforeignmemory_open(
            logger.pointer if logger else None, 0
        )
        if not self._handle:
            raise self._error("xenforeignmemory_open", ctypes.get_errno())

    def close(self) -> None:
        """Unmap what is mapped; a second time does nothing."""
        for address, pages in self._mapped.values():
            self._library.xenforeignmemory_unmap(self._handle, address, pages)
        self._mapped.clear()
        if self._handle:
            self._library.xenforeignmemory_close(self._handle)
            self._handle = None

    def map(self, pfns: Pfns, *, writable: bool) -> memoryview:
        """The pages in the order of `pfns`, as one view that holds until `unmap`.

        Raises OSError: EINVAL for a pfn without a page, ENOENT for one that is paged out, and
        whatever else Xen says of the first pfn that it refuses.
        """
        wanted, pages = pfns.buffer_info()
        none = bytes(4 * pages)
        refused = array("i", none)
        prot = _PROT_READ | (_PROT_WRITE if writable else 0)
        address = self._library.xenforeignmemory_map(
            self._handle, self._domid, prot, pages, wanted, refused.buffer_info()[0]
        )
        if not address:
            raise self._error(f"xenforeignmemory_map of {pages} pages", ctypes.get_errno())
        if refused.tobytes() != none:
            self._library.xenforeignmemory_unmap(self._handle, address, pages)
            pfn, error = next(one for one in zip(pfns, refused, strict=True) if one[1])
            raise self._error(f"xenforeignmemory_map of pfn {pfn:#x}", -error)
        access = _PYBUF_WRITE if writable else _PYBUF_READ
        view: memoryview = _memory_view()(address, pages * PAGE_SIZE, access)
        self._mapped[id(view)] = address, pages
        return view

    def unmap(self, view: memoryview) -> None:
        """Release a view that `map` gave."""
        address, pages = self._mapped.pop(id(view))
        view.release()
        self._library.xenforeignmemory_unmap(self._handle, address, pages)

    def _error(self, what: str, errnoval: int) -> OSError:
        return call_error(f"{what}, domain {self._domid}", errnoval)
