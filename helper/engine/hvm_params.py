"""The HVM_PARAM_* (xen/include/public/hvm/params.h) that a stream carries or a restore sets."""

from __future__ import annotations

from collections.abc import Callable

from xen_save_helper.ipc_schema.hints import Final

STORE_PFN: Final = 1
STORE_EVTCHN: Final = 2
PAE_ENABLED: Final = 4
IOREQ_PFN: Final = 5
BUFIOREQ_PFN: Final = 6
VIRIDIAN: Final = 9
IDENT_PT: Final = 12
CONSOLE_PFN: Final = 17
CONSOLE_EVTCHN: Final = 18
ACPI_IOPORTS_LOCATION: Final = 19
PAGING_RING_PFN: Final = 27
MONITOR_RING_PFN: Final = 28
SHARING_RING_PFN: Final = 29
IOREQ_SERVER_PFN: Final = 32
NR_IOREQ_SERVER_PAGES: Final = 33
VM_GENERATION_ID_ADDR: Final = 34
X87_FIP_WIDTH: Final = 36
VM86_TSS_SIZED: Final = 37
MCA_CAP: Final = 38

SAVED: Final = (
    STORE_PFN,
    IOREQ_PFN,
    BUFIOREQ_PFN,
    PAGING_RING_PFN,
    MONITOR_RING_PFN,
    SHARING_RING_PFN,
    VM86_TSS_SIZED,
    CONSOLE_PFN,
    ACPI_IOPORTS_LOCATION,
    VIRIDIAN,
    IDENT_PT,
    VM_GENERATION_ID_ADDR,
    IOREQ_SERVER_PFN,
    NR_IOREQ_SERVER_PAGES,
    X87_FIP_WIDTH,
    MCA_CAP,
)
"""The parameters in an HVM_PARAMS record, in the order of libxc's write_hvm_params. Event channels
are not among them: each host has its own."""

CLEARED: Final = frozenset({STORE_PFN, CONSOLE_PFN, IOREQ_PFN, BUFIOREQ_PFN})
"""Parameters that name a ring shared with the old host: a restore empties that page."""


def to_save(get: Callable[[int], int]) -> list[tuple[int, int]]:
    """(index, value) of the parameters that a stream carries and that are not 0, in its order."""
    return [(index, value) for index in SAVED if (value := get(index))]
