"""The phases of a save: this table alone decides what is done next.

It has xc_domain_save's order (xg_sr_save.c), with the postcopy series' branch. Each phase does its
work and ends with an outcome; a failure ends the save from any phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.phases import Phase


class Outcome(Enum):
    DONE = "done"
    LIVE = "live"
    NON_LIVE = "non-live"
    STOP_AND_COPY = "stop and copy"
    POSTCOPY = "postcopy"
    DEBUG = "debug"
    LEFT = "left"
    """What is left is a page server's."""
    COMPLETE = "complete"
    """The receiver has all it needs (POSTCOPY_COMPLETE)."""


NEXT: Final[Mapping[tuple[Phase, Outcome], Phase]] = {
    (Phase.HEADERS, Outcome.DONE): Phase.STATIC_DATA,
    (Phase.STATIC_DATA, Outcome.LIVE): Phase.PRECOPY,
    (Phase.STATIC_DATA, Outcome.NON_LIVE): Phase.SUSPEND,
    (Phase.PRECOPY, Outcome.STOP_AND_COPY): Phase.SUSPEND,
    (Phase.PRECOPY, Outcome.POSTCOPY): Phase.POSTCOPY_PFNS_AHEAD,
    (Phase.SUSPEND, Outcome.DONE): Phase.STOP_AND_COPY,
    (Phase.STOP_AND_COPY, Outcome.DONE): Phase.STATE,
    (Phase.STOP_AND_COPY, Outcome.DEBUG): Phase.VERIFY,
    (Phase.VERIFY, Outcome.DONE): Phase.STATE,
    (Phase.STATE, Outcome.DONE): Phase.END,
    (Phase.POSTCOPY_PFNS_AHEAD, Outcome.DONE): Phase.SUSPEND_FOR_POSTCOPY,
    (Phase.SUSPEND_FOR_POSTCOPY, Outcome.DONE): Phase.POSTCOPY_BEGIN,
    (Phase.POSTCOPY_BEGIN, Outcome.DONE): Phase.POSTCOPY_PFNS,
    (Phase.POSTCOPY_PFNS, Outcome.DONE): Phase.POSTCOPY_TRANSITION,
    (Phase.POSTCOPY_TRANSITION, Outcome.DONE): Phase.POSTCOPY_PAGES,
    (Phase.POSTCOPY_TRANSITION, Outcome.LEFT): Phase.END,
    (Phase.POSTCOPY_PAGES, Outcome.DONE): Phase.POSTCOPY_DRAIN,
    (Phase.POSTCOPY_PAGES, Outcome.COMPLETE): Phase.END,
    (Phase.POSTCOPY_DRAIN, Outcome.COMPLETE): Phase.END,
    (Phase.END, Outcome.DONE): Phase.FINISHED,
}
