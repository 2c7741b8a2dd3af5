"""What is known of the real streams.

Names and PAGE_DATA records are those that Xen's verify-stream-v2 tells; sizes fit how the guests
were made (96 MiB are 24,576 pages, 128 MiB 32,768). The exact `present` of PVH and HVM guests and
the number of rounds have no source but `inspect` itself: they pin what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

_START = ["xl HEADER", "libxl HEADER", "libxl LIBXC_CONTEXT"]
_HEADERS = ["libxc IMAGE_HEADER", "libxc DOMAIN_HEADER"]
_STATIC = ["libxc X86_CPUID_POLICY", "libxc X86_MSR_POLICY", "libxc STATIC_DATA_END"]
_HVM = ["libxc X86_TSC_INFO", "libxc HVM_CONTEXT", "libxc HVM_PARAMS", "libxc END"]
_PVH = [*_START, *_HEADERS, *_STATIC, "libxc PAGE_DATA", *_HVM]


@dataclass(frozen=True)
class Known:
    """`names` are the entries in order, neighbours of one name as one.

    `records` is the number of PAGE_DATA records, `p2m` that of the pfns, `present` that of the
    pages that the guest has; the last three are of the whole stream only.
    """

    names: list[str]
    live: bool
    domain_type: str
    guest: str
    records: int
    p2m: int
    present: int


KNOWN = {
    "hvm-live-xen-4.17": Known(
        names=[
            *_PVH,
            "libxl EMULATOR_CONTEXT",
            "libxl END",
            "xl TRAILING",
        ],
        live=True,
        domain_type="X86_HVM",
        guest="hvm",
        records=1028,
        p2m=1_044_480,
        present=32_763,
    ),
    "pv-save-xen-4.17": Known(
        names=[
            *_START,
            *_HEADERS,
            "libxc X86_PV_INFO",
            *_STATIC,
            "libxc X86_PV_P2M_FRAMES",
            "libxc PAGE_DATA",
            "libxc X86_TSC_INFO",
            "libxc SHARED_INFO",
            "libxc X86_PV_VCPU_BASIC",
            "libxc X86_PV_VCPU_EXTENDED",
            "libxc X86_PV_VCPU_XSAVE",
            "libxc END",
            "libxl END",
        ],
        live=False,
        domain_type="X86_PV",
        guest="pv",
        records=24,
        p2m=24_576,
        present=24_576,
    ),
    "pvh-live-xen-4.17": Known(
        names=[*_PVH, "libxl END", "xl TRAILING"],
        live=True,
        domain_type="X86_HVM",
        guest="pvh",
        records=1025,
        p2m=1_044_480,
        present=24_592,
    ),
    "pvh-save-xen-4.17": Known(
        names=[*_PVH, "libxl END"],
        live=False,
        domain_type="X86_HVM",
        guest="pvh",
        records=1020,
        p2m=1_044_480,
        present=24_592,
    ),
}
LIVE_ROUNDS = 6
"""Five of libxenguest's default policy, and the last one, of the suspended guest."""
