"""The phases of a save and of a restore, as the trace names them (`phase`, with `name`)."""

from __future__ import annotations

from enum import Enum

from xen_save_helper.ipc_schema.hints import Final

HEADERS: Final = "headers"
"""What a restore reads before its first stage."""


class Phase(Enum):
    """The phases of a save; `helper.engine.save_phases` has their order."""

    HEADERS = HEADERS
    STATIC_DATA = "static data"
    PRECOPY = "precopy"
    SUSPEND = "suspend"
    STOP_AND_COPY = "stop and copy"
    VERIFY = "verify"
    STATE = "state"
    POSTCOPY_PFNS_AHEAD = "postcopy pfns ahead"
    SUSPEND_FOR_POSTCOPY = "suspend for postcopy"
    POSTCOPY_BEGIN = "postcopy begin"
    POSTCOPY_PFNS = "postcopy pfns"
    POSTCOPY_TRANSITION = "postcopy transition"
    POSTCOPY_PAGES = "postcopy pages"
    POSTCOPY_DRAIN = "postcopy drain"
    END = "end"
    FINISHED = "finished"


class Stage(Enum):
    """What a restore is reading; `helper.engine.restore_order` has the order."""

    STATIC_DATA = "static data"
    MEMORY = "memory and state"
    VERIFY = "verification"
    POSTCOPY_PFNS_AHEAD = "list of postcopy pages ahead"
    POSTCOPY_STATE = "state before postcopy"
    POSTCOPY_PFNS = "list of postcopy pages"
    POSTCOPY_PAGES = "postcopy pages"
    ENDED = "end"
