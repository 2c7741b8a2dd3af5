"""The catalogue of trace events: every line that a process of ours may write into a trace.

Name, fields, who writes it and when stand here and nowhere else. A line also has the fields of
`trace.Trace`: `t`, `pid`, `process` and `event`. Names of events and fields are in snake_case; what
a value says (a phase's name, an action of the handshake) is spelled where it is made.

The trace does not look its lines up here: a save fails for no line. The tests do, over the calls in
the sources and over the traces of their runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import CATALOGUE as MESSAGES
from xen_save_helper.ipc_schema.channel.messages import Kind as MessageKind
from xen_save_helper.ipc_schema.channel.messages import Sender


class Kind(StrEnum):
    """The JSON type of a field."""

    INT = "int"
    REAL = "real"
    TEXT = "str"
    BOOL = "bool"
    LIST = "list"
    OBJECT = "object"
    NULL = "null"


_TYPES: Final[Mapping[Kind, tuple[type, ...]]] = {
    Kind.INT: (int,),
    Kind.REAL: (int, float),
    Kind.TEXT: (str,),
    Kind.BOOL: (bool,),
    Kind.LIST: (list,),
    Kind.OBJECT: (dict,),
    Kind.NULL: (type(None),),
}


class Writer(StrEnum):
    """The `process` of a line."""

    CONTROLLER = "controller"
    """libxl's side of a save, of a restore, and of a migration at the source."""
    RECEIVER = "receiver"
    """libxl's side of a migration at the destination."""
    HELPER = "helper"
    LINK = "link"
    """Stands between both sides of a migration in a fault run."""


class Field(NamedTuple):
    name: str
    kinds: frozenset[Kind]
    optional: bool
    """Some of the event's lines lack it."""


class TraceEvent(NamedTuple):
    """One row of the catalogue."""

    name: str
    fields: tuple[Field, ...]
    writers: frozenset[Writer]
    doc: str
    """When it is written."""

    @property
    def field_names(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields)


COMMON: Final = frozenset({"t", "pid", "process", "event"})
"""The fields of every line, which no event has as its own."""


def _fields(text: str) -> tuple[Field, ...]:
    """Of `KIND NAME, KIND|KIND NAME, KIND NAME?, …`; the last is one that may be missing."""
    found = []
    for part in text.split(", ") if text else ():
        kinds, name = part.split(" ")
        optional = name.endswith("?")
        found.append(
            Field(name.removesuffix("?"), frozenset(map(Kind, kinds.split("|"))), optional)
        )
    return tuple(found)


_OF_MESSAGE: Final[Mapping[MessageKind, Kind]] = {
    MessageKind.STRING: Kind.TEXT,
    MessageKind.BOOL: Kind.BOOL,
}


def _of_messages(*names: str) -> tuple[Field, ...]:
    """What the messages carry, but for proofs."""
    fields = {
        field.name: Field(
            field.name, frozenset({_OF_MESSAGE.get(field.kind, Kind.INT)}), optional=True
        )
        for name in names
        for field in MESSAGES[name].fields
        if field.kind is not MessageKind.BYTES
    }
    return tuple(fields.values())


_FROM_HELPER: Final = tuple(
    name for name, row in MESSAGES.items() if row.sender is Sender.HELPER and name != "hello"
)

_HELPER = frozenset({Writer.HELPER})
_LINK = frozenset({Writer.LINK})
_SOURCE = frozenset({Writer.CONTROLLER})
_DESTINATION = frozenset({Writer.RECEIVER})
_LIBXL = _SOURCE | _DESTINATION
_BOTH = _LIBXL | _HELPER
_ALL = _BOTH | _LINK


def _event(
    name: str,
    fields: str,
    writers: frozenset[Writer],
    doc: str,
    more: tuple[Field, ...] = (),
) -> TraceEvent:
    return TraceEvent(name, (*_fields(fields), *more), writers, doc)


# fmt: off
_ROWS: Final = (
    # A helper's way, by itself.
    _event("faults", "str plan", _HELPER, "A fault plan is given to the process."),
    _event("hello", "", _HELPER, "The channel to a controller of ours is about to be opened."),
    _event("start", "list arguments?, str dialect?, real stream_stall?", _HELPER,
           "The job is known: the message `start` of our controller, or libxl's `arguments`.",
           _of_messages("start")),
    _event("engine", "str engine, str hypervisor", _HELPER, "The engine is about to begin."),
    _event("phase", "str name, str state, real seconds?", _HELPER,
           "A phase begins (`state` begin) or has ended well (end)."),
    _event("round",
           "str doing_what, real seconds, int iteration?, int pfns?, int pages?, "
           "int dirty_count?, str decision?, int frames?", _HELPER,
           "A round of precopy has ended; libxc's own say their `frames` alone."),
    _event("final_dirty", "int dirty_count", _HELPER,
           "The guest is suspended, and so many pages are left."),
    _event("postcopy_pfns", "int pages", _HELPER, "The list of what is left is sent."),
    _event("postcopy_complete", "", _HELPER, "The last page is in place at the destination."),
    _event("without_the_sender", "str error", _HELPER,
           "The sender has gone when no page was missing any more."),
    _event("cleanup_failed", "str error", _HELPER,
           "What a save undoes in its end, such as log-dirty mode, could not be undone."),
    _event("log", "int level, str|null context, str text", _HELPER, "libxc has logged a line."),
    _event("waiting", "str text", _HELPER, "The log has a line on a stream that stands still."),
    _event("complete", "int retval, int errnoval", _HELPER,
           "libxc's work has ended; the controller is about to be told."),

    # A helper, as its controller sees it.
    _event("helper_started", "int helper", _LIBXL, "A helper was started; `helper` is its pid."),
    _event("helper_ready", "", _LIBXL, "Its hello has come and is good."),
    _event("stranger_refused", "str reason", _LIBXL,
           "Somebody else than the helper spoke at its endpoint."),
    _event("answer", "str name, int value", _LIBXL, "A callback is about to be answered."),
    _event("helper_stderr", "str line", _LIBXL, "The helper has written a line to its stderr."),
    _event("helper_run", "str what, str reason", _LIBXL,
           "The helper is given up; `what` is an event of `rules.helper_run`."),
    _event("abort_not_sent", "str error", _LIBXL, "A helper to be ended cannot be told so."),
    _event("helper_exited", "int status", _LIBXL,
           "Its process has ended; `status` is negative for a signal."),
    _event("helper_result", "int|null domid, int rc, int retval, int errnoval, bool completed",
           _LIBXL, "The operation has the result of its helper: what `complete` said, if it did."),

    # Both see these.
    _event("callback", "str name, int value?, real seconds?", _BOTH,
           "The helper has made a callback (with the answer, and after how long), or its "
           "controller has heard a message of it. Either has the fields of the message.",
           tuple(field for field in _of_messages(*_FROM_HELPER) if field.name != "name")),
    _event("precopy_policy",
           "int iteration, int total_written, int dirty_count, str why, int|null domid?, "
           "str answer?, int|null octets_per_second?, str decision?", _BOTH,
           "What follows a round is decided: by the controller (`answer`), or by the limits of "
           "whoever runs the drop-in (`decision`)."),
    _event("stood_still", "real seconds, str who?", _BOTH,
           "A process goes on that was stopped: that of the line, or `who`."),
    _event("failure",
           "str what?, str phase?, str callback?, str|null error?, int|null errnoval?, "
           "int|null domid?, str reason?, int rc?", _BOTH,
           "Something has failed. A helper says the phase, the callback, or `what` (watchdog, "
           "channel, aborted), with `error` and `errnoval`; a controller its `reason`."),
    _event("fault", "str point, str action, int count, str fault", _ALL,
           "A fault strikes; `fault` as in the plan, `count` of the passes of its point."),

    # libxl's operations.
    _event("save", "int domid, bool live, str strategy", _SOURCE, "A save begins."),
    _event("suspend_request", "int domid", _SOURCE, "The guest is asked to suspend."),
    _event("suspend_done", "int domid, int rc", _SOURCE, "It has suspended, or failed to."),
    _event("switch_qemu_logdirty", "int domid, bool enable", _SOURCE,
           "The device model's log-dirty mode is about to be switched."),
    _event("logdirty_off", "int domid", _SOURCE,
           "The helper did not end in order: log-dirty mode is turned off in its place."),
    _event("stream_write", "int domid, str part, int rc", _SOURCE,
           "A part of the libxl stream is written, or failed to be."),
    _event("save_ended", "int domid, int rc, str transitioned, bool suspended", _SOURCE,
           "The end of a save."),
    _event("domain_created", "int domid, str name", _LIBXL, "A restore has made its domain."),
    _event("stream_read", "int|null domid, str|int record", _LIBXL,
           "A record of the libxl stream is read; `record` is its number if it is unknown."),
    _event("static_data_done", "int domid, int missing", _LIBXL, "See the callback."),
    _event("restore_results", "int domid, int store_gfn, int console_gfn", _LIBXL,
           "See the callback."),
    _event("postcopy_transition", "int domid", _LIBXL,
           "The libxl records of the transition are about to be written or read."),
    _event("postcopy_transition_done", "int domid, int rc", _LIBXL, "They are, or failed to be."),
    _event("postcopy_resume_done", "int domid, int rc", _LIBXL,
           "The guest runs at the destination while its memory comes in, or failed to."),
    _event("restore_program_started", "int|null domid, int program, object environment", _LIBXL,
           "The host's own toolstack restores; `program` is its pid."),
    _event("restore_program_says", "str line", _LIBXL, "It has written a line to its stderr."),
    _event("restore_program_exited", "int|null domid, int status", _LIBXL,
           "Its process has ended; `status` is negative for a signal."),
    _event("restore_ended", "int|null domid, int rc, bool postcopy_resumed?", _LIBXL,
           "The end of a restore."),

    # What xl adds.
    _event("handshake", "str action, str result?", _LIBXL,
           "A step of a migration begins, or (with `result`) has ended."),
    _event("abort", "str action, bool followed", _LIBXL,
           "The migration is interrupted at a step; whether that is followed there."),
    _event("receiver_exited", "int status", _SOURCE,
           "The receiver's process has ended; `status` is negative for a signal."),
    _event("consequence", "str reason", _LIBXL, "What went wrong after the first failure."),
    _event("no_report", "str reason, int domid?", _SOURCE,
           "The guest cannot be asked how it does."),
    _event("no_state", "int domid, str reason", _SOURCE,
           "The host cannot be asked what the guest does."),
    _event("recovered", "str way, str text", _SOURCE,
           "A destination on this machine whose receiver is dead was recovered."),
    _event("received", "bool started, int rc, str reason", _DESTINATION, "The end of a receive."),
    _event("migrated",
           "str outcome, int rc, str mode, str postcopy_transitioned, int|null rounds, "
           "int|null pages_sent, int|null bytes_sent, real total_seconds, "
           "real|null downtime_seconds, real stopped_seconds, object|null postcopy, "
           "object guest, str reason, list warnings", _SOURCE, "The end of a migration."),

    # A fault run's own.
    _event("link", "str direction, str error", _LINK, "A direction of the link has broken."),
)
# fmt: on

TRACE_EVENTS: Final[Mapping[str, TraceEvent]] = {row.name: row for row in _ROWS}
"""Every event by name."""


def why_not_catalogued(line: Mapping[str, Any]) -> Iterator[str]:
    """What in a line of a trace is not as the catalogue has it."""
    for name in COMMON - set(line):
        yield f"no {name}"
    row = TRACE_EVENTS.get(str(line.get("event")))
    if row is None:
        yield f"unknown event {line.get('event')!r}"
        return
    if line.get("process") not in row.writers:
        yield f"{row.name}: not written by {line.get('process')!r}"
    for name in set(line) - COMMON - row.field_names:
        yield f"{row.name}: unknown field {name!r}"
    for field in row.fields:
        if field.name not in line:
            if not field.optional:
                yield f"{row.name}: no {field.name}"
        elif not any(_is_a(kind, line[field.name]) for kind in field.kinds):
            yield f"{row.name}: {field.name} is {line[field.name]!r}"


def _is_a(kind: Kind, value: object) -> bool:
    if isinstance(value, bool):
        return kind is Kind.BOOL
    return isinstance(value, _TYPES[kind])
