"""The `struct vcpu_info` of a simulated guest's vCPU: what the hypervisor itself writes.

It is a part of an ordinary page, of which the guest writes the rest. As under Xen, the guest
chooses the page, registers it with the hypervisor whenever it starts (VCPUOP_register_vcpu_info),
and remembers it in its registers. The hypervisor writes the time there at each step of the guest,
and does not wait for a page that is paged out: the guest crashes, as Linux does
("register_vcpu_info failed: cpu=0 err=-22").

Beyond what guests of Xen do, the guest compares the version of the time that it finds with the one
that it saw last: a page that was sent too early, and not again, crashes it as well.
"""

from __future__ import annotations

import struct
import time
from typing import Final

import numpy as np

from xen_save_helper.helper.hypervisors.simulated.layout import HOST_KHZ, P2M, PAGE_SIZE
from xen_save_helper.helper.hypervisors.simulated.pattern import Words
from xen_save_helper.helper.hypervisors.simulated.shared import SharedMemory
from xen_save_helper.helper.hypervisors.xen.vcpu_info import scale_of

_FORMAT: Final = struct.Struct("<BB6xQ16xIIQQIbBH")
"""xen/include/public/xen.h: evtchn_upcall_pending and _mask, evtchn_pending_sel, (cr2 and a pad);
of the time: version, pad0, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags."""

_OFFSET: Final = PAGE_SIZE // 2
"""Of the struct in its page."""
WORDS: Final = slice(_OFFSET // 8, (_OFFSET + _FORMAT.size) // 8)
"""Those of its page that are the hypervisor's."""
_VERSION: Final = _OFFSET // 8 + 4

FIRST_VERSION: Final = 2
"""Of a guest that has just been built. It is even when nobody writes, and not 0."""
_VERSIONS: Final = 1 << 32


class NotThereError(Exception):
    """The hypervisor met a page that is paged out or absent."""


def version_in(page: Words) -> int:
    """The version of the time in a page of 512 words."""
    return int(page[_VERSION]) & (_VERSIONS - 1)


def write(page: Words, version: int, khz: int) -> None:
    """Write the time now into a page of 512 words; `khz` is the frequency of the guest's TSC, 0
    for the host's (tsc_set_info)."""
    khz = khz or HOST_KHZ
    now = time.monotonic_ns()
    scale = scale_of(khz)
    ticks = now * khz // 10**6
    info = _FORMAT.pack(0, 0, 0, version, 0, ticks, now, scale.mul, scale.shift, 1, 0)
    page[WORDS] = np.frombuffer(info, np.uint64)


def update(shared: SharedMemory, words: Words, pfn: int) -> tuple[int, int]:
    """Have the hypervisor write the time into the struct on page `pfn`; returns the version that
    was there, and the one that is there now.

    `words` has a row for each pfn. Raises NotThereError, and the text says why.
    """
    state = shared.p2m[pfn]
    if state != P2M.POPULATED:
        what = "paged out, and it does not wait" if state == P2M.PAGED_OUT else "absent"
        raise NotThereError(
            f"the hypervisor cannot write the vCPU's vcpu_info: pfn {pfn:#x} is {what}"
        )
    before = version_in(words[pfn])
    version = (before + 2) % _VERSIONS or 2
    write(words[pfn], version, shared.domain.tsc_khz)
    return before, version
