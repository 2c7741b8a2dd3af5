"""What a helper is asked to do: one shape for both sides, from which all others are made.

The catalogue's `start` has these fields, and libxl's command line some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum

from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, Operation, StreamType
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Engine(StrEnum):
    """What does the work on the domain."""

    OWN = "own"
    """Ours: any hypervisor that has all of `interface.Domain`, and postcopy."""
    LIBXENGUEST = "libxenguest"
    """Xen's xc_domain_save and xc_domain_restore: real domains, without postcopy."""


DEFAULT_ENGINE: Final = Engine.OWN
"""If nobody chose one. What only libxenguest can do is done by it in any case."""


class HelperRequest(NamedTuple):
    """One save or restore; the catalogue's `start` says what its fields mean.

    `io_fd` and `back_fd` are descriptors of the process that holds the request: the helper gets
    copies of a toolstack's, under other numbers. `back_fd` is -1 for none. A restore with a
    `control` may be left to a pager, as a save with a `link` to a page server.
    """

    operation: Operation
    domid: int
    io_fd: int
    back_fd: int = -1
    xcflags: int = 0
    stream_type: StreamType = StreamType.PLAIN
    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0
    hypervisor: str = "xen"
    engine: Engine = DEFAULT_ENGINE
    bandwidth: int = 0
    postcopy: bool = False
    missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE
    sparse: bool = False
    max_downtime_ms: int = 0
    link: str = ""
    control: str = ""


OF_THE_CHANNEL = frozenset({"proof", "cbflags"})
"""Fields of `start` that are about the conversation, not about the work."""


def start_fields(request: HelperRequest) -> dict[str, Any]:
    """The fields of `start` that come from the request."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in request._asdict().items()
    }


def request_of_start(start: Mapping[str, Any]) -> HelperRequest:
    """The request in the fields of a `start`. Raises ValueError for a value that its enum does not
    have. Raises TypeError for an unknown field: that is a bug, and must not go unnoticed."""
    from typing import get_type_hints

    fields = {name: start[name] for name in start if name not in OF_THE_CHANNEL}
    for name, kind in get_type_hints(HelperRequest).items():
        if name in fields and issubclass(kind, Enum):
            fields[name] = kind(fields[name])
    return HelperRequest(**fields)
