"""A simulated guest's registers, and the HVM context that carries them.

The context is opaque to everyone but the guest. It has all that a guest must remember about its
memory: what it writes, and how many writes it has made.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from xen_save_helper.helper.hypervisors.simulated.kinds import Kind
from xen_save_helper.helper.hypervisors.simulated.workload import Workload

_MAGIC: Final = b"XSH-REGISTERS\0\0\2"
_FORMAT: Final = struct.Struct("<16sII Q d QQ QQQQ 16s Q I4x")


class ForeignContextError(ValueError):
    """A context that is damaged, or not a simulated guest's."""


@dataclass
class Registers:
    """`present` of the `pages` pages have not been given back (the last ones go first)."""

    kind: Kind
    seed: int
    rate: float
    pages: int
    present: int
    writes: int
    steps: int
    pages_checked: int
    sweep: int
    """The page that the guest compares next in its sweep over memory."""
    token: bytes
    """The token of the guest's device model: 16 bytes, empty (zeros) for a PVH guest."""
    vcpu_info: int
    """The page with the vCPU's struct vcpu_info: see `vcpu_info`."""
    vcpu_info_version: int
    """The version of the time in it that the guest saw last."""

    def workload(self) -> Workload:
        return Workload(self.kind, self.pages, self.seed)

    def encode(self) -> bytes:
        body = _FORMAT.pack(
            _MAGIC, self.kind, self.vcpu_info_version, self.seed, self.rate, self.pages,
            self.present, self.writes, self.steps, self.pages_checked, self.sweep, self.token,
            self.vcpu_info, 0,
        )  # fmt: skip
        return body[:-8] + struct.pack("<I4x", zlib.crc32(body[:-8]))

    @classmethod
    def decode(cls, context: bytes) -> Registers:
        """Raises ForeignContextError."""
        if len(context) != _FORMAT.size or not context.startswith(_MAGIC):
            raise ForeignContextError(
                f"its HVM context ({len(context)} bytes) is not that of a simulated guest"
            )
        if context[-8:] != struct.pack("<I4x", zlib.crc32(context[:-8])):
            raise ForeignContextError("its HVM context is damaged: the checksum differs")
        (
            _, kind, version, seed, rate, pages, present, writes, steps, checked, sweep, token,
            vcpu_info, _,
        ) = _FORMAT.unpack(context)  # fmt: skip
        return cls(
            Kind(kind), seed, rate, pages, present, writes, steps, checked, sweep, token,
            vcpu_info, version,
        )  # fmt: skip
