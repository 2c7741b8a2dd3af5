"""What the helper's process is to do, what comes of it, and with which status it exits.

No numpy here, and no dataclasses: the main program loads this before it does anything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits

EXIT_DONE: Final = 0
"""`complete` was told and answered, whatever libxc's result."""
EXIT_CONTROLLER_GONE: Final = 254
EXIT_FAILED: Final = 255
"""The helper's own errors: it was not started rightly, or the protocol was broken."""


class Job(NamedTuple):
    """The request, by `start` or by libxl's command line, and what the process itself was told."""

    request: HelperRequest
    stall_limit: float = 0.0
    """Seconds that stream and back channel may stand still when something is due, 0 for ever."""
    admission: float = 0.0
    """See `Abort`."""
    limits: PrecopyLimits | None = None
    """The precopy policy of the environment, for a controller that has none; None for
    libxenguest's."""
    device_model: str = ""
    """Of the environment: see `helper.hypervisors.xen.restored_model`."""


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


class RestoreResults:
    """Where the restored guest has its rings (0: nowhere), and what the stream carried."""

    def __init__(
        self, store_gfn: int = 0, console_gfn: int = 0, statistics: Statistics | None = None
    ) -> None:
        self.store_gfn = store_gfn
        self.console_gfn = console_gfn
        self.statistics = statistics or Statistics()
