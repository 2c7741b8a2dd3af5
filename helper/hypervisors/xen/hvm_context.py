"""The pages of a guest that its HVM context names, and that Xen accesses without waiting for them.

Xen does so while it loads the context (hvm_load), at a time when postcopy has evicted pages:

- `viridian`: the reference TSC page, and each vCPU's VP assist and SynIC message pages. Xen maps
  them for itself (viridian_map_guest_page) and goes on without a page that it does not get: the
  guest would then read there what its old host left, the time above all.
- `cr3`: the root of each vCPU's page tables. Of a 32-bit guest with PAE on Intel's processors Xen
  reads it (vmx_load_pdptrs), and crashes the domain if it cannot. All others are only faster:
  their first instruction walks the tables, which faults (an EPT or NPT violation), and waits. So
  the tables are there by the time Xen walks them itself for a hypercall.

Records, numbers and offsets are those of xen/include/public/arch-x86/hvm/save.h, the same in Xen
4.14 to 4.22.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of

_DESCRIPTOR: Final = struct.Struct("<HHI")
"""struct hvm_save_descriptor: typecode, instance, length."""

_CODE_END: Final = 0
_CODE_CPU: Final = 2
_CODE_VIRIDIAN_DOMAIN: Final = 15
_CODE_VIRIDIAN_VCPU: Final = 17

_CR0: Final = 656
_CR3: Final = 672
"""Offsets in struct hvm_hw_cpu."""
_CR0_PG: Final = 1 << 31
_CR3_BITS: Final = (1 << 52) - 1
"""Bits 12 to 51 are the frame."""

_VIRIDIAN_PAGES: Final = {_CODE_VIRIDIAN_DOMAIN: (24,), _CODE_VIRIDIAN_VCPU: (0, 16)}
"""Offsets of reference_tsc, and of vp_assist_msr and simp_msr: bit 0 says whether it is enabled,
bits 12 on are the pfn."""
_ENABLED: Final = 1


class Record(NamedTuple):
    code: int
    instance: int
    body: bytes

    def u64(self, offset: int) -> int:
        """A field; 0 if the record ends before it, as Xen reads one of an older release
        (hvm_load_entry_zeroextend)."""
        return int.from_bytes(self.body[offset : offset + 8], "little")


def records(context: bytes) -> Iterator[Record]:
    """The records of a context, without its end. Raises OSError(EINVAL) if it is not one."""
    offset = 0
    while offset + _DESCRIPTOR.size <= len(context):
        code, instance, length = _DESCRIPTOR.unpack_from(context, offset)
        offset += _DESCRIPTOR.size
        if code == _CODE_END:
            return
        if offset + length > len(context):
            break
        yield Record(code, instance, context[offset : offset + length])
        offset += length
    raise OSError(errno.EINVAL, f"an HVM context of {len(context)} bytes has no end")


def needed(context: bytes) -> dict[str, Pfns]:
    """The pages, each once, by what they are. Raises OSError(EINVAL)."""
    found: dict[str, set[int]] = {"cr3": set(), "viridian": set()}
    for record in records(context):
        if record.code == _CODE_CPU and record.u64(_CR0) & _CR0_PG:
            found["cr3"].add((record.u64(_CR3) & _CR3_BITS) >> 12)
        for offset in _VIRIDIAN_PAGES.get(record.code, ()):
            if (msr := record.u64(offset)) & _ENABLED:
                found["viridian"].add(msr >> 12)
    return {what: pfns_of(sorted(pfns)) for what, pfns in found.items() if pfns}
