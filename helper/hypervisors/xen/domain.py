"""interface.Domain of a real HVM or PVH domain: what our own engine asks of libxenctrl.

Names, arguments and their order are libxc's; what differs between the releases is in
`helper.hypervisors.xen.engine_abi`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.hypervisors.xen import cpu_policy
from xen_save_helper.helper.hypervisors.xen.controlled_domain import XenControlledDomain
from xen_save_helper.helper.hypervisors.xen.engine_abi import (
    ENGINE_ABIS,
    EngineAbi,
    HypercallBuffer,
    ShadowOpStats,
)
from xen_save_helper.helper.hypervisors.xen.foreign_memory import ForeignMemory
from xen_save_helper.helper.hypervisors.xen.libraries import (
    XENVER_VERSION,
    abi_version,
    load,
    versioned,
)
from xen_save_helper.helper.hypervisors.xen.toollog import Logger
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final
from xen_save_helper.ipc_schema.streams.libxc_bodies import TscInfo
from xen_save_helper.ipc_schema.streams.pfns import Pfns

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.xen.paging import XenPaging
    from xen_save_helper.helper.hypervisors.xen.suspend_hold import XenSuspendHold

_SHADOW_OP_CLEAN: Final = 11
_FINAL: Final = 1
"""XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL."""

_MAX_TYPES: Final = 1024
"""What one XEN_DOMCTL_getpageframeinfo3 takes; more is E2BIG."""

_TYPE_OCTETS: Final = slice(3, None, 8)
"""The octets with the types in an array that xc_get_pfn_type_batch has filled."""

_PAGE_BITS: Final = 4096 * 8
"""Bits of a page of a hypercall buffer."""

_BITS: Final = tuple(bytes(octet >> bit & 1 for octet in range(256)) for bit in range(8))
"""For each bit of an octet, whether it is set in each octet."""
_UNPACKED_AT_ONCE: Final = 4096
"""Octets of a bitmap: most parts of one are either holes or clean."""


@cache
def _abi() -> EngineAbi:
    return ENGINE_ABIS[abi_version()]


@cache
def _control() -> ctypes.CDLL:
    return load(versioned("libxenctrl"), _abi().control)


@cache
def _guest() -> ctypes.CDLL:
    return load(versioned("libxenguest"), _abi().guest)


def unpack(bits: bytes, bitmap: Bitmap) -> None:
    """Fill `bitmap` with `bits`, least significant first; there may be some more of these."""
    clean = bytes(8 * _UNPACKED_AT_ONCE)
    for start in range(0, len(bits), _UNPACKED_AT_ONCE):
        part = bits[start : start + _UNPACKED_AT_ONCE]
        unpacked = bytearray(clean[: 8 * len(part)])
        if part.count(0) < len(part):
            for bit, is_set in enumerate(_BITS):
                unpacked[bit::8] = part.translate(is_set)
        end = min(8 * start + len(unpacked), len(bitmap))
        bitmap[8 * start : end] = unpacked[: end - 8 * start]


class XenDomain(XenControlledDomain):
    """One domain with the operations on its log-dirty mode, its memory and its registers.

    One thread at a time, but for `foreign_map` and `foreign_unmap`, which a second one may call.
    Every method raises OSError with libxc's errno; opening raises ProcessLookupError if there is no
    such domain.
    """

    def __init__(self, domid: int) -> None:
        self._complaint = ""
        self._logger = Logger(self._keep, lambda *_progress: None, lambda *_failed: None)
        self._bitmap: HypercallBuffer | None = None
        self._bitmap_pages = 0
        super().__init__(domid, self._logger)
        try:
            self._memory = ForeignMemory(domid, self._logger)
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Give up every mapping and buffer; the domain goes on."""
        self._free_bitmap()
        self._memory.close()
        super().close()

    def version(self) -> tuple[int, int]:
        found = self._call("xc_version", XENVER_VERSION, None, of_domain=False)
        return found >> 16, found & 0xFFFF

    def maximum_gpfn(self) -> int:
        gpfn = ctypes.c_ulong()
        self._call("xc_domain_maximum_gpfn", ctypes.byref(gpfn))
        return gpfn.value

    # -- log-dirty ------------------------------------------------------------------------------

    def logdirty_enable(self) -> None:
        self._xenctrl.logdirty_enable(self.domid)

    def logdirty_clean(self, dirty: Bitmap, *, final: bool = False) -> int:
        pages = len(dirty)
        bitmap = self._buffer(pages)
        stats = ShadowOpStats()
        both = ctypes.byref(bitmap), pages
        mode = _FINAL if final else 0
        if _abi().splits_logdirty:
            name = "xc_logdirty_control"
            done = self._call(name, _SHADOW_OP_CLEAN, *both, mode, ctypes.byref(stats))
        else:
            name = "xc_shadow_control"
            done = self._call(name, _SHADOW_OP_CLEAN, *both, None, mode, ctypes.byref(stats))
        if done != pages:
            raise OSError(
                errno.EIO, f"{name}, domain {self.domid}: the bitmap has {done} pages of {pages}"
            )
        unpack(ctypes.string_at(bitmap.hbuf or 0, -(-pages // 8)), dirty)
        return int(stats.dirty_count)

    def _buffer(self, bits: int) -> HypercallBuffer:
        """A hypercall buffer for so many bits, kept for the next time."""
        pages = -(-bits // _PAGE_BITS)
        if self._bitmap is None or self._bitmap_pages < pages:
            self._free_bitmap()
            # As DECLARE_HYPERCALL_BUFFER initialises it.
            bitmap = HypercallBuffer(ubuf=ctypes.c_void_p(-1).value)
            handle = self._xenctrl.handle
            if not _control().xc__hypercall_buffer_alloc_pages(handle, ctypes.byref(bitmap), pages):
                raise OSError(
                    errno.ENOMEM,
                    f"xc_hypercall_buffer_alloc_pages of {pages} pages: "
                    f"{os.strerror(errno.ENOMEM)}",
                )
            self._bitmap, self._bitmap_pages = bitmap, pages
        return self._bitmap

    def _free_bitmap(self) -> None:
        if self._bitmap is not None:
            bitmap = ctypes.byref(self._bitmap)
            _control().xc__hypercall_buffer_free_pages(
                self._xenctrl.handle, bitmap, self._bitmap_pages
            )
            self._bitmap = None

    # -- memory ---------------------------------------------------------------------------------

    def get_pfn_type_batch(self, pfns: Pfns) -> bytes:
        types = pfns[:]
        address, count = types.buffer_info()
        ask, handle, domid = _control().xc_get_pfn_type_batch, self._xenctrl.handle, self.domid
        ctypes.set_errno(0)
        for start in range(0, count, _MAX_TYPES):
            part = min(count - start, _MAX_TYPES)
            if ask(handle, domid, part, address + start * types.itemsize) < 0:
                raise self._error("xc_get_pfn_type_batch")
        return types.tobytes()[_TYPE_OCTETS]

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """As one view whatever the pfns are."""
        return [self._memory.map(pfns, writable=writable)]

    def foreign_unmap(self, views: list[memoryview]) -> None:
        for view in views:
            self._memory.unmap(view)

    def populate_physmap_exact(self, pfns: Pfns, order: int = 0) -> None:
        """Raises EBUSY if Xen populates fewer than it is asked for."""
        # The call writes to its array.
        extents = pfns[:]
        address, count = extents.buffer_info()
        self._call("xc_domain_populate_physmap_exact", count, order, 0, address)

    def clear_pages(self, pfn: int, count: int = 1) -> None:
        self._call("xc_clear_domain_pages", pfn, count)

    def console_init(self, pfn: int) -> None:
        if _abi().console_init:
            self._check("xc_dom_console_init", _guest(), pfn)
        else:
            self.clear_pages(pfn)

    def gnttab_seed(
        self, *, console_gfn: int, store_gfn: int, console_domid: int, store_domid: int
    ) -> None:
        seeds = (True, console_gfn, store_gfn, console_domid, store_domid)
        self._check("xc_dom_gnttab_seed", _guest(), *seeds)

    def needed_at_once(self) -> Pfns:
        from xen_save_helper.helper.hypervisors.xen import vcpu_info

        return vcpu_info.find(self)

    def needed_by(self, context: bytes) -> dict[str, Pfns]:
        from xen_save_helper.helper.hypervisors.xen import hvm_context

        return hvm_context.needed(context)

    def mem_paging_enable(self) -> XenPaging:
        """Raises OSError if this domain or this Xen cannot have paging, with the reason."""
        from xen_save_helper.helper.hypervisors.xen.paging import XenPaging

        return XenPaging(self, self._call, self._memory)

    def mem_paging_take_over(self) -> XenPaging:
        from xen_save_helper.helper.hypervisors.xen.paging import XenPaging

        return XenPaging(self, self._call, self._memory, take_over=True)

    def hold_suspend(self) -> XenSuspendHold:
        """Raises OSError if xenstored or the domain's node is missing."""
        from xen_save_helper.helper.hypervisors.xen.suspend_hold import XenSuspendHold

        return XenSuspendHold(self.domid)

    # -- registers and the rest -----------------------------------------------------------------

    def hvm_getcontext(self) -> bytes:
        size = self._call("xc_domain_hvm_getcontext", None, 0)
        buffer = ctypes.create_string_buffer(size)
        used = self._call("xc_domain_hvm_getcontext", buffer, size)
        return buffer.raw[:used]

    def hvm_setcontext(self, context: bytes) -> None:
        self._call("xc_domain_hvm_setcontext", context, len(context))

    def hvm_param_get(self, index: int) -> int:
        return self._xenctrl.hvm_param_get(self.domid, index)

    def hvm_param_set(self, index: int, value: int) -> None:
        self._xenctrl.hvm_param_set(self.domid, index, value)

    def tsc_info(self) -> TscInfo:
        mode, khz, incarnation = (ctypes.c_uint32() for _ in range(3))
        nsec = ctypes.c_uint64()
        self._call("xc_domain_get_tsc_info", *map(ctypes.byref, (mode, nsec, khz, incarnation)))
        return TscInfo(mode.value, khz.value, nsec.value, incarnation.value)

    def set_tsc_info(self, info: TscInfo) -> None:
        arguments = info.mode, info.nsec, info.khz, info.incarnation
        self._call("xc_domain_set_tsc_info", *arguments)

    def cpu_policy(self) -> tuple[bytes, bytes]:
        return cpu_policy.domain_cpu_policy(self._xenctrl, self.domid)

    def set_cpu_policy(self, cpuid: bytes, msr: bytes) -> None:
        cpu_policy.set_domain_cpu_policy(self._xenctrl, self.domid, cpuid, msr)

    def system_cpu_policy(self) -> bytes:
        return cpu_policy.system_cpu_policy(self._xenctrl, hvm=True)

    # -- calls ----------------------------------------------------------------------------------

    def _call(self, function: str, *arguments: object, of_domain: bool = True) -> int:
        """A function of libxenctrl, negative if it fails."""
        domain = (self.domid,) if of_domain else ()
        ctypes.set_errno(0)
        result: int = getattr(_control(), function)(self._xenctrl.handle, *domain, *arguments)
        if result < 0:
            raise self._error(function)
        return result

    def _check(self, function: str, library: ctypes.CDLL, *arguments: object) -> None:
        """A function that returns 0 unless it fails."""
        ctypes.set_errno(0)
        if getattr(library, function)(self._xenctrl.handle, self.domid, *arguments):
            raise self._error(function)

    def _error(self, function: str) -> OSError:
        errnoval = ctypes.get_errno() or errno.EIO
        said, self._complaint = self._complaint, ""
        what = f"{function}, domain {self.domid}: {os.strerror(errnoval)}"
        return OSError(errnoval, f"{what} ({said})" if said else what)

    def _keep(self, level: int, errnoval: int, context: str, formatted: str) -> None:
        del errnoval, context
        if level >= XentoollogLevel.ERROR:
            self._complaint = formatted
