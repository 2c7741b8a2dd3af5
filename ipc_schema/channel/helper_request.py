"""What a helper is asked to do: one shape for both sides, from which all others are made.

The catalogue's `start` has these fields, libxl's command line has some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any, NamedTuple, get_type_hints

from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, Operation, StreamType


class Engine(StrEnum):
    """What does the work on the domain."""

    OWN = "own"
    """Our own: every hypervisor with the whole of `interface.Domain`, and postcopy."""
    LIBXENGUEST = "libxenguest"
    """Xen's xc_domain_save and xc_domain_restore: real domains; what libxc's stream can carry."""


class HelperRequest(NamedTuple):
    """One save or restore; the catalogue's `start` says what its fields mean.

    `io_fd` and `back_fd` are numbers of the process that has the request: a toolstack's stay its
    own, and the helper gets copies under other numbers. `back_fd` is -1 for none.
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
    engine: Engine = Engine.OWN
    bandwidth: int = 0
    postcopy: bool = False
    missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE


OF_THE_CHANNEL = frozenset({"proof", "cbflags"})
"""Fields of `start` that are about the conversation, not about the work."""


def start_fields(request: HelperRequest) -> dict[str, Any]:
    """Those fields of `start` that are the request's."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in request._asdict().items()
    }


def request_of_start(start: Mapping[str, Any]) -> HelperRequest:
    """The request in the fields of a `start`. Raises ValueError for a value that an enum does not
    have, and TypeError for a field that a request does not have: it is a fault, not one to be
    passed over."""
    fields = {name: start[name] for name in start if name not in OF_THE_CHANNEL}
    for name, kind in get_type_hints(HelperRequest).items():
        if name in fields and issubclass(kind, Enum):
            fields[name] = kind(fields[name])
    return HelperRequest(**fields)
