"""Finds the pages with a guest's `struct vcpu_info`, which Xen itself writes.

The guest chooses where they are, and Xen can be asked for none of them. A vCPU whose page is
evicted is refused its hypercalls (EINVAL), where an access of the guest's own would wait: a guest
without them dies. Each holds what Xen tells of the time (`struct vcpu_time_info`): the factor from
the TSC's frequency to nanoseconds, which is the same in all, and nearly nowhere else.

A page too many costs a page that is sent early.
"""

from __future__ import annotations

from collections.abc import Iterator

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.page_lists import contents_mask
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, run_of, selected

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.interface import Domain

_SIZE: Final = 64
"""Of struct vcpu_info, at whose multiples Linux, and everybody who keeps to cache lines, has it."""
_WORDS: Final = _SIZE // 8
_AT_ONCE: Final = 1024

_UPCALL: Final = 0
"""The word of evtchn_upcall_pending and _mask, two octets that are 0 or 1."""
_VERSION: Final = 4
"""version, and 32 bits of zeros."""
_TSC: Final = 5
_SYSTEM_TIME: Final = 6
_SCALE: Final = 7
"""tsc_to_system_mul (32 bits), tsc_shift (8), flags (8), 16 bits of zeros."""

_FLAGS: Final = 0x3
_U32: Final = 0xFFFFFFFF
_NANOSECONDS: Final = 10**9


class Scale(NamedTuple):
    """nanoseconds = (ticks << shift) * mul >> 32."""

    mul: int
    shift: int


def scale_of(khz: int) -> Scale:
    """set_time_scale of xen/arch/x86/time.c. `khz` is not 0."""
    ticks, shift = khz * 1000, 0
    while ticks > 2 * _NANOSECONDS:
        ticks >>= 1
        shift -= 1
    while ticks <= _NANOSECONDS:
        ticks <<= 1
        shift += 1
    return Scale((_NANOSECONDS << 32) // ticks, shift)


def find(domain: Domain) -> Pfns:
    """The pages of a domain that may run meanwhile. All its memory is read once."""
    scale = scale_of(domain.tsc_info().khz)
    found = pfns_of()
    end = domain.maximum_gpfn() + 1
    for first in range(0, end, _AT_ONCE):
        pfns = run_of(first, min(_AT_ONCE, end - first))
        pfns = selected(pfns, contents_mask(domain.get_pfn_type_batch(pfns)))
        if not pfns:
            continue
        views = domain.foreign_map(pfns)
        try:
            number = 0
            for view in views:
                found.extend(pfns[number + page] for page in pages_with(view, scale))
                number += len(view) // PAGE_SIZE
        finally:
            domain.foreign_unmap(views)
    return found


def pages_with(memory: memoryview, scale: Scale) -> Iterator[int]:
    """The numbers of the pages in `memory` that have one, each once."""
    # Only a postcopy pays for its import.
    import numpy as np

    words = np.frombuffer(memory, np.uint64).reshape(-1, _WORDS)
    last = words[:, _SCALE]
    mul = last & _U32
    # What Xen has measured is not exactly what it tells.
    near = (mul >= scale.mul - (scale.mul >> 10)) & (mul <= scale.mul + (scale.mul >> 10))
    rest = (last >> 32) & ~np.uint64(_FLAGS << 8)
    before = -1
    for place in np.flatnonzero(near & (rest == scale.shift & 0xFF)):
        info = words[place]
        if (
            not int(info[_UPCALL]) & ~0x0101
            and 0 < int(info[_VERSION]) <= _U32
            and info[_TSC]
            and info[_SYSTEM_TIME]
            and (page := int(place) * _SIZE // PAGE_SIZE) != before
        ):
            before = page
            yield page
