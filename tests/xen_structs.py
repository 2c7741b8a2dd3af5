"""Structures of Xen's public headers, made by hand: struct vcpu_info (xen.h), and HVM contexts
(arch-x86/hvm/save.h), as far as somebody reads them."""

from __future__ import annotations

import struct
from typing import Final

from xen_save_helper.helper.hypervisors.xen.vcpu_info import Scale, scale_of

_INFO: Final = struct.Struct("=BB6xQ16xIIQQIbBH")
"""pending, mask, pending_sel, (cr2 and a pad), version, pad0, tsc_timestamp, system_time,
tsc_to_system_mul, tsc_shift, flags, pad1."""
SCALE: Final = scale_of(2_400_000)

_CPU_BYTES: Final = 1032
"""Those of struct hvm_hw_cpu."""
_HEADER: Final = struct.pack("<IIQII", 0x54381286, 1, 0x0004_0011, 0x306F2, 2_400_000)
"""Any struct hvm_save_header."""


def vcpu_info(
    scale: Scale = SCALE, pending: int = 0, mask: int = 1, version: int = 8, flags: int = 1
) -> bytes:
    return _INFO.pack(
        pending, mask, 0, version, 0, 10**12, 10**11, scale.mul, scale.shift, flags, 0
    )


def record(code: int, instance: int, body: bytes) -> bytes:
    return struct.pack("<HHI", code, instance, len(body)) + body


def cpu(instance: int, *, cr0: int = 0x8005_0033, cr3: int) -> bytes:
    """A vCPU, in 64-bit mode if it has the usual cr0."""
    body = bytearray(number % 256 for number in range(_CPU_BYTES))
    struct.pack_into("<QQQQ", body, 656, cr0, 0xDEAD, cr3, 0x6F0)
    return record(2, instance, bytes(body))


def viridian_domain(reference_tsc: int) -> bytes:
    return record(15, 0, struct.pack("<QQQQ", 0x3001, 0x1234, 99, reference_tsc))


def viridian_vcpu(instance: int, *, vp_assist: int, simp: int) -> bytes:
    return record(17, instance, struct.pack("<QQQ", vp_assist, 1, simp) + bytes(192))


def context(*records: bytes) -> bytes:
    """A whole context: a header, these records, and the end."""
    return record(1, 0, _HEADER) + b"".join(records) + record(0, 0, b"")
