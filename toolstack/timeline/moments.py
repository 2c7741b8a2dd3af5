"""The moments of an operation that matter, by its trace, and the downtime between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xen_save_helper.ipc_schema.streams.phases import Phase
from xen_save_helper.toolstack.rules.handshake import Receiver, Sender
from xen_save_helper.toolstack.timeline.operations import Operation
from xen_save_helper.toolstack.timeline.picture import Downtime, Part
from xen_save_helper.toolstack.timeline.sides import Side
from xen_save_helper.toolstack.timeline.trace_lines import Line

Place = Callable[[Line], float]
"""When a line was written, in the picture's time."""


class Moment(NamedTuple):
    at: float
    how: str
    """What shows it."""


@dataclass(frozen=True)
class Moments:
    """Each is None if the trace does not show it. `suspend_asked` to `runs_there` are in order."""

    suspend_asked: Moment | None
    suspended: Moment | None
    pages_sent: Moment | None
    state_in_place: Moment | None
    device_model: Moment | None
    allowed: Moment | None
    runs_there: Moment | None
    all_there: Moment | None
    """The last page of a postcopy is in place."""
    runs_here: Moment | None
    """It was resumed at the source."""
    lost_there: Moment | None
    """The destination failed after the guest had run there."""
    died: Moment | None
    """The guest itself died: when that was first told."""
    postcopy: bool
    """It ran before its last pages were there."""
    by_link: bool = False
    """They came over a link of their own, after an ordinary migration."""


def moments_of(operation: Operation, place: Place) -> Moments:
    """The moments of an operation."""
    source, destination = operation.source, operation.destination
    postcopy = source is not None and _ran(source, Phase.POSTCOPY_PFNS)
    if destination is not None:
        postcopy = (
            postcopy or _first(destination, "callback", name="postcopy_transition") is not None
        )
    here = _Side(source, place)
    there = _Side(destination, place)
    asked = here.line("suspend_request") or here.callback("suspend", begins=True)
    done = here.line("suspend_done", rc=0) or here.callback("suspend", value=1)
    if done is None:
        done = here.phase(Phase.SUSPEND, "end") or here.phase(Phase.SUSPEND_FOR_POSTCOPY, "end")
    by_link = postcopy and there.callback("postcopy_transition", begins=True) is None
    by_link = by_link and not there.line("postcopy_transition")
    if postcopy and not by_link:
        sent = here.phase(Phase.POSTCOPY_PFNS, "end")
        state = there.callback("postcopy_transition", begins=True) or there.line(
            "postcopy_transition"
        )
        model = there.line("postcopy_transition_done", rc=0)
        allowed = None
        runs = there.line("postcopy_resume_done", rc=0)
    else:
        sent = here.phase(Phase.POSTCOPY_PFNS if by_link else Phase.STOP_AND_COPY, "end")
        state = there.line("complete", retval=0) or there.line("helper_result", rc=0)
        model = there.line("restore_ended", rc=0)
        allowed = there.line("handshake", action=Receiver.UNPAUSE.value)
        runs = there.line("handshake", action=Receiver.REPORT_STARTED.value)
    if destination is None and not operation.migration:
        # A save: the stream's end is the end of the guest.
        state = here.line("complete", retval=0)
        model = here.line("save_ended", rc=0)
    resumed = here.step_end(Sender.RESUME.value) or here.step_end(Sender.SETTLE.value)
    return Moments(
        suspend_asked=asked,
        suspended=done,
        pages_sent=sent,
        state_in_place=state,
        device_model=model,
        allowed=allowed,
        runs_there=runs,
        all_there=there.line("postcopy_complete"),
        runs_here=resumed,
        lost_there=None if runs is None else there.failed("restore_ended"),
        died=_died(operation, here, there),
        postcopy=postcopy,
        by_link=by_link,
    )


def _died(operation: Operation, here: _Side, there: _Side) -> Moment | None:
    source = operation.source
    if source is None or source.value("outcome", "migrated") != "guest-died":
        return None
    told = [one for one in (here.line("failure"), there.line("failure")) if one is not None]
    return min(told, default=here.line("migrated"))


def downtime_of(operation: Operation, moments: Moments) -> Downtime | None:
    """The downtime taken apart; None if the guest was not suspended."""
    if moments.suspend_asked is None or moments.suspended is None:
        return None
    chain: list[tuple[str, Moment | None]] = [
        ("suspend", moments.suspended),
        ("last pages", moments.pages_sent),
        ("state", moments.state_in_place),
        ("device model", moments.device_model),
    ]
    if operation.migration and moments.runs_here is None:
        if not moments.postcopy or moments.by_link:
            chain.append(("handshake", moments.allowed))
        chain.append(("resume", moments.runs_there))
    if moments.runs_here is not None:
        chain = [
            *((name, at) for name, at in chain[:2]),
            ("resume at the source", moments.runs_here),
        ]
    parts, open_names = _parts(chain, moments.suspend_asked)
    missing = f"the trace does not show {_listed(open_names)}" if open_names else ""
    told = None
    if operation.source is not None:
        value = operation.source.value("downtime_seconds", "migrated")
        # A guest may be shown another clock at the destination.
        told = float(value) if isinstance(value, int | float) and value >= 0 else None
    return Downtime(tuple(parts), not open_names, missing, told)


def _parts(chain: list[tuple[str, Moment | None]], start: Moment) -> tuple[list[Part], list[str]]:
    """The parts between the known moments; those whose end is unknown are one with the next.
    Returns also the names of those after the last known moment."""
    parts: list[Part] = []
    names: list[str] = []
    at = start
    for name, moment in chain:
        names.append(name)
        if moment is None:
            continue
        # Clocks of two machines may be wrong by a part of this.
        end = max(at.at, moment.at)
        parts.append(Part(_listed(names), at.at, end, f"{at.how} → {moment.how}"))
        at, names = Moment(end, moment.how), []
    return parts, names


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


# -- what a side's lines show ----------------------------------------------------------------------


def _first(side: Side, event: str, **fields: object) -> Line | None:
    return next(_all(side, event, **fields), None)


def _all(side: Side, event: str, **fields: object) -> Iterator[Line]:
    for line in side.named(event):
        if all(line.get(name) == value for name, value in fields.items()):
            yield line


def _ran(side: Side, phase: Phase) -> bool:
    return any(line.get("name") == phase.value for line in side.named("phase"))


class _Side:
    """The moments of one side, which may be unknown."""

    def __init__(self, side: Side | None, place: Place) -> None:
        self._side = side
        self._place = place

    def line(self, event: str, **fields: object) -> Moment | None:
        if self._side is None:
            return None
        found = _first(self._side, event, **fields)
        if found is None:
            return None
        shown = fields.get("action") or event
        return Moment(self._place(found), str(shown))

    def failed(self, event: str) -> Moment | None:
        """The event, if it tells of a failure."""
        if self._side is None:
            return None
        for line in self._side.named(event):
            if line.get("rc"):
                return Moment(self._place(line), event)
        return None

    def phase(self, phase: Phase, state: str) -> Moment | None:
        if self._side is None:
            return None
        for line in self._side.named("phase"):
            if line.get("name") == phase.value and line.get("state") == state:
                return Moment(self._place(line), f"{state} of {phase.value}")
        return None

    def callback(
        self, name: str, *, begins: bool = False, value: int | None = None
    ) -> Moment | None:
        """A callback as the helper tells it: when it was answered, with how long that took."""
        if self._side is None:
            return None
        for line in self._side.named("callback"):
            took = line.get("seconds")
            if line.get("name") != name or not isinstance(took, int | float):
                continue
            if value is not None and line.get("value") != value:
                continue
            at = self._place(line) - (float(took) if begins else 0.0)
            return Moment(at, f"{name} {'called' if begins else 'answered'}")
        return None

    def step_end(self, action: str) -> Moment | None:
        """The end of a step of the handshake: the next step, or the migration's end."""
        if self._side is None:
            return None
        begun = False
        for line in self._side.named("handshake", "receiver_exited", "migrated"):
            if begun and line.get("action") != action:
                return Moment(self._place(line), f"end of: {action}")
            begun = begun or (line.event == "handshake" and line.get("action") == action)
        return None
