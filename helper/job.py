"""What the helper's process is to do, with what, and how it says that it has.

No numpy here, and no dataclasses: the main program loads this before it does anything.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import (
    MissingCpuFeatures,
    Operation,
    StreamType,
)
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits

EXIT_DONE: Final = 0
"""`complete` was told and answered, whatever libxc's result."""
EXIT_CONTROLLER_GONE: Final = 254
EXIT_FAILED: Final = 255
"""The helper's own errors: it was not started rightly, or the protocol was broken."""


class Engine(Enum):
    """What does the work on the domain."""

    OWN = "own"
    LIBXENGUEST = "libxenguest"


class Job(NamedTuple):
    """What to do: `start`, or libxl's command line and the environment."""

    operation: Operation
    domid: int
    io_fd: int
    back_fd: int
    xcflags: int
    stream_type: StreamType
    store_evtchn: int
    store_domid: int
    console_evtchn: int
    console_domid: int
    hypervisor: str
    engine: Engine
    bandwidth: int
    postcopy: bool
    stall_limit: float
    admission: float
    """See `Abort`."""
    limits: PrecopyLimits | None
    """Of the environment, for a controller that has no precopy policy; None for the engine's."""
    device_model: str
    """Of the environment: see `helper.hypervisors.xen.restored_model`."""
    missing_cpu_features: MissingCpuFeatures
    """Of the environment: see `helper.cpu_check`."""
