"""The catalogue of trace events: every line that a process of ours may write into a trace.

Names, fields, writers and occasions are defined here and nowhere else. A line also has the fields
of `trace.Trace`: `t`, `pid`, `process` and `event`. Names of events and fields are in snake_case;
values (a phase's name, a step of the handshake) are spelled where they are made.

`Trace` does not check its lines against the catalogue: no line may make a save fail. The tests do,
for the calls in the sources and for the traces of their runs.
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
    PAGE_SERVER = "page server"
    """Of a postcopy under xl: it keeps the guest's last pages at the source."""
    LINK = "link"
    """The process between both sides of a migration in a fault run."""


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
"""Fields of every line, which no event declares."""

ABOUT: Final = frozenset({"guest"})
"""Fields that any line may have: the guest's name, if its writer knows it (`Trace.about`)."""


def _fields(text: str) -> tuple[Field, ...]:
    """Parse `KIND NAME, KIND|KIND NAME, KIND NAME?, …`; the last one is optional."""
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
    """The fields of messages, except proofs."""
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
_PAGE_SERVER = frozenset({Writer.PAGE_SERVER})
_OUTLIVES = _PAGE_SERVER | _HELPER
_LINK = frozenset({Writer.LINK})
_SOURCE = frozenset({Writer.CONTROLLER})
_DESTINATION = frozenset({Writer.RECEIVER})
_LIBXL = _SOURCE | _DESTINATION
_BOTH = _LIBXL | _HELPER
_ALL = _BOTH | _LINK | _PAGE_SERVER


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
    _event("clock", "str|null boot, int|null time_namespace, real realtime", frozenset(Writer),
           "The first line of each process: whose CLOCK_MONOTONIC `t` is (lines with the same "
           "`boot` and `time_namespace` have the same), and the time of day in seconds."),

    # What a helper does.
    _event("faults", "str plan", _HELPER, "The process was given a fault plan."),
    _event("hello", "", _HELPER, "The channel to a controller of ours is about to be opened."),
    _event("start", "list arguments?, str dialect?, real stream_stall?", _HELPER,
           "The job is known: the message `start` of our controller, or libxl's `arguments`.",
           _of_messages("start")),
    _event("engine", "str engine, str hypervisor", _HELPER, "The engine is about to start."),
    _event("phase", "str name, str state, real seconds?", _HELPER,
           "A phase begins (`state` is begin) or has succeeded (end)."),
    _event("round",
           "str doing_what, real seconds, int iteration?, int pfns?, int pages?, "
           "int dirty_count?, str decision?, int frames?", _HELPER,
           "A round of precopy has ended; libxenguest's rounds have `frames` only."),
    _event("final_dirty", "int dirty_count", _HELPER,
           "The guest is suspended; `dirty_count` pages are left to send."),
    _event("ahead", "str why, list pfns, int sent", _HELPER,
           "Pages that postcopy must not leave behind: `why` is what they are (vcpu_info, cr3, "
           "viridian). The `sent` that are dirty are sent now; the others were."),
    _event("hot_pages",
           "int hot, int room, int sent, int max_downtime_ms, int|null pages_per_second", _HELPER,
           "Of the pages left to postcopy, `hot` were dirty at least twice when the dirty bitmap "
           "was read. The `sent` hottest go ahead: `room` is what the rounds' rate (null: no round "
           "was long enough to tell) can move in `max_downtime_ms`."),
    _event("postcopy_pfns_ahead", "int pages, real seconds", _HELPER,
           "A list of `pages` that are left went ahead while the guest was running; after "
           "`seconds` the destination had evicted them."),
    _event("postcopy_pfns", "int pages", _HELPER, "The list of the remaining pages is sent."),
    _event("postcopy_faults", "int faults, list latencies, real longest, int missing", _HELPER,
           "`faults` missing pages that vCPUs waited for have arrived since the last such line, "
           "the slowest after `longest` seconds; `latencies[n]` of them took less than 2**n "
           "microseconds and no less than half of that. `missing` pages are still to come."),
    _event("postcopy_complete", "", _HELPER, "The last page is in place at the destination."),
    _event("without_the_sender", "str error", _HELPER,
           "The sender disconnected after the last page had arrived."),
    _event("page_server", "str address, int port, str refusal", _HELPER,
           "The receiver connects to the sender's page server; `refusal` is why it cannot page."),
    _event("suspend_held", "str request, int missing", _HELPER,
           "The guest is asked to suspend, shut down or reboot while pages are missing: it is not "
           "shown that."),
    _event("suspend_let_through", "str request, real seconds", _HELPER,
           "The last page is in place: the guest is shown what it was asked for so long ago."),
    _event("suspend_hold_failed", "str error", _HELPER,
           "Requests can no longer be seen, or the guest not be shown them."),
    _event("outlives", "int started", _HELPER,
           "The process does the work of the helper that a controller has started, whose pid is "
           "`started`, and may outlive it as a pager."),
    _event("pager", "", _HELPER, "libxl has been told that all is restored; the pager goes on."),
    _event("cleanup_failed", "str error", _HELPER,
           "A save could not undo something at its end, such as log-dirty mode."),
    _event("log", "int level, str|null context, str text", _HELPER, "libxc has logged a line."),
    _event("waiting", "str text", _HELPER, "A line about a stream that stands still was logged."),
    _event("complete", "int retval, int errnoval", _HELPER,
           "libxc's work has ended; the controller is about to be told."),

    # A helper, as its controller sees it.
    _event("helper_started", "int helper", _LIBXL, "A helper was started; `helper` is its pid."),
    _event("helper_ready", "", _LIBXL, "Its hello was received and accepted."),
    _event("stranger_refused", "str reason", _LIBXL,
           "A peer other than the helper spoke at its endpoint."),
    _event("answer", "str name, int value", _LIBXL, "A callback is about to be answered."),
    _event("helper_stderr", "str line", _LIBXL, "The helper wrote a line to its stderr."),
    _event("helper_run", "str what, str reason", _LIBXL,
           "The controller gives the helper up; `what` is an event of `rules.helper_run`."),
    _event("abort_not_sent", "str error", _LIBXL, "The abort could not be sent to the helper."),
    _event("helper_exited", "int status", _LIBXL,
           "Its process has ended; `status` is negative for a signal."),
    _event("helper_result", "int|null domid, int rc, int retval, int errnoval, bool completed",
           _LIBXL, "The operation has its helper's result: that of `complete`, if it came."),

    # Both sides.
    _event("callback", "str name, int value?, real seconds?", _BOTH,
           "The helper made a callback (with the answer and how long it took), or the controller "
           "received a message. Both have the message's fields.",
           tuple(field for field in _of_messages(*_FROM_HELPER) if field.name != "name")),
    _event("precopy_policy",
           "int iteration, int total_written, int dirty_count, str why, int|null domid?, "
           "str answer?, int|null octets_per_second?, str decision?", _BOTH,
           "The precopy policy decided what follows a round: the controller's (`answer`), or the "
           "drop-in's own (`decision`)."),
    _event("stood_still", "real seconds, str who?", _BOTH,
           "A process continues that was stopped: the writer of the line, or `who`."),
    _event("failure",
           "str what?, str phase?, str callback?, str|null error?, int|null domid?, "
           "str reason?, int rc?, str cause?, int errnoval?", _BOTH,
           "Something failed. A helper names the phase, the callback, or `what` (watchdog, "
           "channel, aborted), with `error`; a controller gives a `reason`."),
    _event("fault", "str point, str action, int count, str fault", _ALL,
           "A fault strikes: `fault` as in the plan, the `count`-th time its point is reached."),

    _event("control", "str ask, object fields", _BOTH,
           "Somebody has steered the operation from another shell: a row of `ipc_schema.control`."),
    _event("no_control", "str directory, str error", _BOTH | _PAGE_SERVER,
           "Nobody can see it or steer it: its control socket cannot be made."),

    # libxl's operations.
    _event("save", "int domid, bool live, str strategy", _SOURCE, "A save begins."),
    _event("suspend_request", "int domid", _SOURCE, "The guest is asked to suspend."),
    _event("suspend_done", "int domid, int rc", _SOURCE, "It has suspended, or failed to."),
    _event("switch_qemu_logdirty", "int domid, bool enable", _SOURCE,
           "The device model's log-dirty mode is about to be switched."),
    _event("logdirty_off", "int domid", _SOURCE,
           "The helper failed: the controller turns log-dirty mode off in its place."),
    _event("stream_write", "int domid, str part, int rc", _SOURCE,
           "A part of the libxl stream was written, or could not be."),
    _event("save_ended",
           "int domid, int rc, str transitioned, bool suspended, str cause?, int errnoval?",
           _SOURCE,
           "A save has ended."),
    _event("domain_created", "int domid, str name", _LIBXL, "A restore has created its domain."),
    _event("stream_read", "int|null domid, str|int record", _LIBXL,
           "A record of the libxl stream was read; `record` is its number if it is unknown."),
    _event("static_data_done", "int domid, int missing", _LIBXL, "See the callback."),
    _event("restore_results", "int domid, int store_gfn, int console_gfn", _LIBXL,
           "See the callback."),
    _event("postcopy_transition", "int domid", _LIBXL,
           "The libxl records of the transition are about to be written or read."),
    _event("postcopy_transition_done", "int domid, int rc", _LIBXL, "They were, or could not be."),
    _event("postcopy_resume_done", "int domid, int rc", _LIBXL,
           "The guest runs at the destination while its memory still arrives, or failed to."),
    _event("restore_program_started", "int|null domid, int program, object environment", _LIBXL,
           "The host's own toolstack was started to restore; `program` is its pid."),
    _event("restore_program_says", "str line", _LIBXL, "It wrote a line to its stderr."),
    _event("restore_program_exited", "int|null domid, int status", _LIBXL,
           "Its process has ended; `status` is negative for a signal."),
    _event("restore_ended",
           "int|null domid, int rc, bool postcopy_resumed?, str cause?, int errnoval?", _LIBXL,
           "A restore has ended."),

    # What xl adds.
    _event("handshake", "str action, str result?", _LIBXL,
           "A step of a migration begins, or (with `result`) has ended."),
    _event("handshake_said", "str message", _LIBXL,
           "A message of the handshake is about to be written."),
    _event("handshake_heard", "str message", _LIBXL, "One was read."),
    _event("migrate", "int domid, str to", _SOURCE, "A migration begins."),
    _event("abort", "str action, bool followed", _LIBXL,
           "The migration was interrupted during a step; `followed` is whether it obeys there."),
    _event("receiver_exited", "int status", _SOURCE,
           "The receiver's process has ended; `status` is negative for a signal."),
    _event("consequence", "str reason", _LIBXL, "Something failed after the first failure."),
    _event("no_report", "str reason, int domid?", _SOURCE,
           "The guest's own report could not be read."),
    _event("no_state", "int domid, str reason", _SOURCE,
           "The host could not be asked for the guest's state."),
    _event("recovered", "str way, str text", _SOURCE,
           "A destination on this machine was recovered after its receiver had died."),
    _event("received", "bool started, int rc, str reason, str cause?, int errnoval?", _DESTINATION,
           "A receive has ended."),
    _event("migrated",
           "str outcome, int rc, str mode, str postcopy_transitioned, int|null rounds, "
           "int|null pages_sent, int|null bytes_sent, real total_seconds, "
           "real|null downtime_seconds, real stopped_seconds, object|null postcopy, "
           "object guest, str reason, list warnings, str cause?, int errnoval?", _SOURCE,
           "A migration has ended."),

    # Of a postcopy over a link of its own.
    _event("pages_kept", "int domid, int pages", _PAGE_SERVER,
           "The save is done; these pages are now here alone."),
    _event("not_spared", "str what, str error", _PAGE_SERVER,
           "The kernel may write its memory out, or end it for want of memory: that cannot be "
           "forbidden here."),
    _event("pager_again", "int domid, int missing", _OUTLIVES,
           "Another pager has taken the place of one that died; so many pages had not come."),
    _event("no_record", "str error", _HELPER,
           "A pager could leave no record for another one to take its place."),
    _event("pages_gone", "int domid", _PAGE_SERVER, "All are in place at the destination."),
    _event("pages_not_wanted", "int domid, str reason", _PAGE_SERVER,
           "The migration has failed: the guest runs here, and they are let go."),
    _event("pages_lost", "str error", _PAGE_SERVER, "It has failed; what it kept is lost."),
    _event("no_scope", "str error", _OUTLIVES,
           "systemd did not give it a unit of its own, so it may end with who has started it."),
    _event("link_silent", "str trouble", _OUTLIVES,
           "Nothing has come from the other side for seconds, and why, as far as is known."),
    _event("link_back", "", _OUTLIVES, "Something comes again."),
    _event("reconnect", "str address, int port", _OUTLIVES,
           "It was told to connect, or to listen, at another address."),

    # In a fault run only.
    _event("link", "str direction, str error", _LINK, "One direction of the link has broken."),
)
# fmt: on

TRACE_EVENTS: Final[Mapping[str, TraceEvent]] = {row.name: row for row in _ROWS}
"""Every event by name."""


def why_not_catalogued(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield each way in which a line of a trace differs from the catalogue."""
    for name in COMMON - set(line):
        yield f"no {name}"
    row = TRACE_EVENTS.get(str(line.get("event")))
    if row is None:
        yield f"unknown event {line.get('event')!r}"
        return
    if line.get("process") not in row.writers:
        yield f"{row.name}: not written by {line.get('process')!r}"
    for name in set(line) - COMMON - ABOUT - row.field_names:
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
