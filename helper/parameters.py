"""What a save or restore is told, and what it tells when it is done.

No numpy here, and no dataclasses: the helper's main program loads this before it does anything.
"""

from __future__ import annotations

from typing import NamedTuple

from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, StreamType
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits


class Statistics:
    """What a stream carried: the fields of the catalogue's `statistics`.

    `rounds` counts passes over the memory that sent any of it, the stop-and-copy one included;
    `pages` counts pages with contents before the guest's hand-over, a page once for each time it
    went; `bytes` counts every octet of the stream; `postcopy_pages` and `postcopy_faults` what went
    after the postcopy transition, and for how many of these a vCPU waited.
    """

    __slots__ = ("bytes", "pages", "postcopy_faults", "postcopy_pages", "rounds")

    def __init__(self, rounds: int = 0, pages: int = 0, octets: int = 0) -> None:
        self.rounds = rounds
        self.pages = pages
        self.bytes = octets
        self.postcopy_pages = 0
        self.postcopy_faults = 0

    def fields(self) -> dict[str, int]:
        """By the message's field names."""
        return {name: getattr(self, name) for name in self.__slots__}


class SaveParameters(NamedTuple):
    """`xc_domain_save`'s parameters beside domain and descriptors.

    `bandwidth` limits the stream, octets a second, 0 for none. `postcopy`: caller and peer admit a
    postcopy transition. `stall_limit` is for how many seconds the back channel may stay silent
    when it has to speak, 0 for ever. `limits` are the precopy policy where the caller has none,
    None for libxenguest's.
    """

    live: bool = False
    debug: bool = False
    stream_type: StreamType = StreamType.PLAIN
    bandwidth: int = 0
    postcopy: bool = False
    stall_limit: float = 60.0
    limits: PrecopyLimits | None = None


class RestoreParameters(NamedTuple):
    """`xc_domain_restore`'s parameters beside domain and descriptors; `postcopy` and `stall_limit`
    as in `SaveParameters`, the latter for stream and back channel. `missing_cpu_features`: see
    `helper.cpu_check`."""

    stream_type: StreamType = StreamType.PLAIN
    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0
    postcopy: bool = False
    stall_limit: float = 60.0
    missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE


class RestoreResults:
    """Where the restored guest has its rings (0: nowhere), and what the stream carried."""

    def __init__(
        self, store_gfn: int = 0, console_gfn: int = 0, statistics: Statistics | None = None
    ) -> None:
        self.store_gfn = store_gfn
        self.console_gfn = console_gfn
        self.statistics = statistics or Statistics()
