"""What the trace must tell of each failure: the cause that the fault must lead to, and the last
words of a helper that ended by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.campaign.evidence import Event
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE, Case, StruckFault
from xen_save_helper.toolstack.campaign.judge.expectation import Effect

_OWN_STATUSES: Final = frozenset({0, 254, 255})
"""A helper's own exit statuses: its work is done, its controller has gone, it has failed."""


def caused(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    for one, side in zip(case.commands, (HERE, THERE), strict=False):
        if one.code > 0 and not (case.dead(side) or one.late):
            yield from _cause(case, side)
    for side in Side:
        yield from _last_words(case, side)


def _cause(case: Case, side: Side) -> Iterator[str]:
    told = _told(case, side)
    if told is not None and told["cause"] == Cause.DESTINATION:
        told = _told(case, THERE) or told
        side = THERE
    if told is None:
        yield f"no cause is told at the {side.value}"
        return
    struck = [one for one in case.fired if one.what.effect is not Effect.NONE]
    if struck and not any(_leads_to(case, one, told, side) for one in struck):
        right = " or ".join(map(_right, struck))
        status = f" (status {_status(case, side)})" if told["cause"] == Cause.HELPER else ""
        yield f"the cause at the {side.value} is {told['cause']}{status}; right is {right}"


def _told(case: Case, side: Side) -> Event | None:
    """The last event at a side that tells a cause, which is that of its end if it came so far."""
    controllers = case.evidence.controllers(side)
    events = case.evidence.events
    told = [one for one in events if one["pid"] in controllers and "cause" in one]
    return told[-1] if told else None


def _leads_to(case: Case, fired: StruckFault, told: Event, side: Side) -> bool:
    what = fired.what
    if not what.causes:
        return True
    ended = _OWN_STATUSES if what.status is None else {what.status}
    if told["cause"] == Cause.HELPER and _status(case, side) not in ended:
        return False
    pids = None if fired.side is None else case.evidence.of(fired.side)
    errnos = {
        one.get("errnoval") for one in case.evidence.events if pids is None or one["pid"] in pids
    }
    return told["cause"] in what.causes and (not what.errnoval or what.errnoval in errnos)


def _status(case: Case, side: Side) -> int | None:
    ended = case.evidence.named("helper_exited", side)
    return int(ended[-1]["status"]) if ended else None


def _right(fired: StruckFault) -> str:
    what = fired.what
    status = "" if what.status is None else f" (status {what.status})"
    number = f" (errno {what.errnoval})" if what.errnoval else ""
    return "/".join(sorted(what.causes)) + status + number


def _last_words(case: Case, side: Side) -> Iterator[str]:
    """A helper that failed says why on its stderr, and the reason repeats that."""
    for pid in case.evidence.controllers(side):
        line, status = "", 0
        for event in (one for one in case.evidence.events if one["pid"] == pid):
            if event["event"] == "helper_stderr":
                line = event["line"] or line
            elif event["event"] == "helper_exited":
                status = event["status"]
            elif (event["event"], event.get("cause")) == ("failure", Cause.HELPER):
                left_out = bool(status) and line not in event["reason"]
                if left_out:
                    yield f"the reason does not name the cause, {line!r}: {event['reason']}"
