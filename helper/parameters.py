"""What a save or restore of our engine is told, and what it tells when it is done.

No numpy here: the helper's main program loads this before it says hello.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc_schema.messages import StreamType


@dataclass
class Statistics:
    """What a stream carried: the fields of the catalogue's `statistics`.

    `rounds` counts passes over the memory that sent any of it, the stop-and-copy one included;
    `pages` counts pages with contents before the guest's hand-over, a page once for each time it
    went; `bytes` counts every octet of the stream; `postcopy_pages` and `postcopy_faults` what went
    after the postcopy transition, and for how many of these a vCPU waited.
    """

    rounds: int = 0
    pages: int = 0
    bytes: int = 0
    postcopy_pages: int = 0
    postcopy_faults: int = 0


@dataclass(frozen=True)
class SaveParameters:
    """`xc_domain_save`'s parameters beside domain and descriptors.

    `bandwidth` limits the stream, octets a second, 0 for none. `postcopy`: caller and peer admit a
    postcopy transition. `stall_limit` is for how many seconds the back channel may stay silent
    when it has to speak, 0 for ever.
    """

    live: bool = False
    debug: bool = False
    stream_type: StreamType = StreamType.PLAIN
    bandwidth: int = 0
    postcopy: bool = False
    stall_limit: float = 60.0


@dataclass(frozen=True)
class RestoreParameters:
    """`xc_domain_restore`'s parameters beside domain and descriptors; `postcopy` and `stall_limit`
    as in `SaveParameters`, the latter for stream and back channel."""

    stream_type: StreamType = StreamType.PLAIN
    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0
    postcopy: bool = False
    stall_limit: float = 60.0


@dataclass
class RestoreResults:
    """Where the restored guest has its rings (0: nowhere), and what the stream carried."""

    store_gfn: int = 0
    console_gfn: int = 0
    statistics: Statistics = field(default_factory=Statistics)
